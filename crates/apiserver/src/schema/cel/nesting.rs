//! How deep an expression in CEL is nested, found out before anything parses it.
//!
//! The parser and the evaluator recurse, and a program whose stack is used up is no more. What is counted may be more than
//! the parser makes of it, never less: the brackets that are open, and the operators in a row that lead there. `&&`, `||`
//! and commas begin a new row, since the parser keeps those flat.

/// Bytes of an expression. Longer ones are no rules that anybody wrote.
const LONGEST: usize = 16 << 10;
/// A quarter of what the stack of a thread has room for where frames are largest.
const DEEPEST: usize = 200;

/// Whether it can be parsed, checked and evaluated at all.
pub fn is_bearable(expression: &str) -> bool {
    expression.len() <= LONGEST && depth(expression.as_bytes()).is_some_and(|depth| depth <= DEEPEST)
}

/// `None`: a text in it has no end.
fn depth(mut rest: &[u8]) -> Option<usize> {
    // Where each open bracket stands, and what has been counted since the last one.
    let (mut open, mut here, mut deepest) = (Vec::<usize>::new(), 0, 0);
    while let Some((&first, after)) = rest.split_first() {
        let begin = open.last().map_or(0, |outside| outside + 1);
        rest = after;
        match first {
            b'(' | b'[' | b'{' => {
                open.push(here);
                here += 1;
            }
            b')' | b']' | b'}' => here = open.pop().unwrap_or(0) + 1,
            b',' => here = begin,
            b'&' | b'|' if after.first() == Some(&first) => (here, rest) = (begin, &after[1..]),
            b'/' if after.first() == Some(&b'/') => rest = &after[position(after, b'\n')..],
            b'"' | b'\'' => rest = text(first, after, false)?,
            first if first.is_ascii_whitespace() => {}
            first if is_word(first) => {
                let word = after.iter().take_while(|byte| is_word(**byte)).count();
                let (raw, joins) = match (first, &after[..word]) {
                    (b'r' | b'R', b"" | b"b" | b"B") | (b'b' | b'B', b"r" | b"R") => (true, false),
                    (first, more) => (false, (first, more) == (b'i', b"n")),
                };
                here += usize::from(joins);
                rest = &after[word..];
                if let (true, Some((quote @ (b'"' | b'\''), after))) = (raw, rest.split_first()) {
                    rest = text(*quote, after, true)?;
                }
            }
            _ => here += 1,
        }
        deepest = deepest.max(here);
    }
    Some(deepest)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn position(bytes: &[u8], wanted: u8) -> usize {
    bytes.iter().position(|byte| *byte == wanted).unwrap_or(bytes.len())
}

/// What follows a text whose first quote has been read; in a raw one a backslash is a backslash.
fn text(quote: u8, mut rest: &[u8], raw: bool) -> Option<&[u8]> {
    let three = [quote; 3];
    let end: &[u8] = if rest.starts_with(&three[1..]) { &three } else { &three[..1] };
    rest = &rest[end.len() - 1..];
    loop {
        if let Some(after) = rest.strip_prefix(end) {
            return Some(after);
        }
        let skipped = if !raw && rest.first() == Some(&b'\\') { 2 } else { 1 };
        rest = rest.get(skipped..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depths() {
        for (expression, want) in [
            ("", Some(0)),
            ("self", Some(0)),
            ("self.min <= self.max", Some(4)),
            ("self.a && self.b || self.c, self.d", Some(1)),
            ("f(a.b, c)", Some(2)),
            ("((a))", Some(2)),
            ("a[0][1][2]", Some(3)),
            ("a.b().c()", Some(4)),
            ("x in y in [1, 2]", Some(3)),
            ("inside", Some(0)),
            ("!!-a ? b : c", Some(5)),
            (r#"'(((' + "[[" "#, Some(1)),
            (r"'\'(((' + r'\' + (a)", Some(3)),
            (r#"r"\" + Br'(' + rb'\' "#, Some(2)),
            ("'''a ' ((( '' \\''' (((''' + '' + \"\"\"\"\"\"", Some(2)),
            ("a // (((((\n + b", Some(1)),
            ("a // (((((", Some(0)),
            ("a)) + b", Some(2)),
            ("'abc", None),
            ("'abc\\'", None),
            ("'''abc''", None),
        ] {
            assert_eq!(depth(expression.as_bytes()), want, "{expression}");
        }
        assert!(is_bearable(&"-".repeat(DEEPEST)) && !is_bearable(&"-".repeat(DEEPEST + 1)));
        assert!(is_bearable(&"a,".repeat(LONGEST / 2)) && !is_bearable(&"a,".repeat(LONGEST / 2 + 1)));
    }
}
