//! Names that live as long as the program: those of kinds that clients define.
//!
//! Rows of the table hold `&'static str`, since most are written in the code. What a definition brings is kept here,
//! each distinct text once and never freed: a definition that comes and goes costs nothing the second time. The
//! surprise: what is kept is bounded, and a definition that would go beyond is refused.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use super::Selectable;

/// Enough for some hundred thousand definitions of the usual size.
const MOST_BYTES: usize = 32 << 20;

#[derive(Default)]
struct Kept {
    texts: HashMap<&'static str, ()>,
    lists: HashMap<Vec<&'static str>, &'static [&'static str]>,
    fields: HashMap<Vec<Selectable>, &'static [Selectable]>,
    bytes: usize,
}

static KEPT: LazyLock<Mutex<Kept>> = LazyLock::new(Mutex::default);

/// `None`: no room is left.
pub fn text(text: &str) -> Option<&'static str> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).text(text)
}

pub fn list<'a>(texts: impl Iterator<Item = &'a str>) -> Option<&'static [&'static str]> {
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let texts: Vec<&'static str> = texts.map(|text| kept.text(text)).collect::<Option<_>>()?;
    if let Some(list) = kept.lists.get(&texts) {
        return Some(list);
    }
    kept.take(std::mem::size_of_val(&*texts))?;
    let list: &'static [&'static str] = Vec::leak(texts.clone());
    kept.lists.insert(texts, list);
    Some(list)
}

/// Fields by name and JSON pointer.
pub fn fields<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Option<&'static [Selectable]> {
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let mut field = |(name, pointer)| Some(Selectable::new(kept.text(name)?, kept.text(pointer)?));
    let fields: Vec<Selectable> = pairs.map(&mut field).collect::<Option<_>>()?;
    if let Some(fields) = kept.fields.get(&fields) {
        return Some(fields);
    }
    kept.take(std::mem::size_of_val(&*fields))?;
    let list: &'static [Selectable] = Vec::leak(fields.clone());
    kept.fields.insert(fields, list);
    Some(list)
}

impl Kept {
    fn text(&mut self, text: &str) -> Option<&'static str> {
        if let Some((kept, ())) = self.texts.get_key_value(text) {
            return Some(kept);
        }
        self.take(text.len())?;
        let kept: &'static str = String::leak(text.to_owned());
        self.texts.insert(kept, ());
        Some(kept)
    }

    fn take(&mut self, bytes: usize) -> Option<()> {
        // What the maps themselves take, roughly.
        const OVERHEAD: usize = 48;
        self.bytes += bytes + OVERHEAD;
        (self.bytes <= MOST_BYTES).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_each() {
        let (first, second) = (text(&String::from("widgets")).unwrap(), text(&String::from("widgets")).unwrap());
        assert!(std::ptr::eq(first, second));
        let (first, second) = (list(["a", "b"].into_iter()).unwrap(), list(["a", "b"].into_iter()).unwrap());
        assert!(std::ptr::eq(first, second));
    }
}
