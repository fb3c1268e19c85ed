//! What may go from the store: everything that no kept manifest names and that nobody used for a while. Pure.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use crate::digest::Digest;
use crate::registry::References;

/// One repository, as it lies on disk.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    pub blobs: Vec<Used>,
    pub manifests: Vec<(Used, References)>,
    pub tagged: HashSet<Digest>,
}

/// A link and how long ago it was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    pub digest: Digest,
    pub ago: Duration,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Doomed {
    pub blobs: Vec<Digest>,
    pub manifests: Vec<Digest>,
}

/// Which links of a repository may go. Roots are the digests in `keep`, tagged manifests, and what is younger than
/// `older_than`: it may be about to be named.
pub(crate) fn plan(inventory: &Inventory, keep: &HashSet<Digest>, older_than: Duration) -> Doomed {
    let manifests: HashMap<Digest, &References> =
        inventory.manifests.iter().map(|(used, references)| (used.digest, references)).collect();
    let young = |used: &Used| used.ago < older_than;
    let mut to_visit: Vec<Digest> = inventory
        .manifests
        .iter()
        .map(|(used, _)| used)
        .filter(|used| keep.contains(&used.digest) || inventory.tagged.contains(&used.digest) || young(used))
        .map(|used| used.digest)
        .collect();
    let mut named: HashSet<Digest> = HashSet::new();
    while let Some(digest) = to_visit.pop() {
        // Named twice, or an index that names itself in a circle: once is enough.
        if !named.insert(digest) {
            continue;
        }
        let Some(references) = manifests.get(&digest) else { continue };
        named.extend(references.config.iter().chain(&references.layers).map(|descriptor| descriptor.digest));
        to_visit.extend(references.manifests.iter().map(|descriptor| descriptor.digest));
    }
    let stays = |used: &Used| named.contains(&used.digest) || keep.contains(&used.digest) || young(used);
    let doomed = |used: &Used| (!stays(used)).then_some(used.digest);
    Doomed {
        blobs: inventory.blobs.iter().filter_map(doomed).collect(),
        manifests: inventory.manifests.iter().filter_map(|(used, _)| doomed(used)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Descriptor;

    fn digest(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    fn used((name, ago): &(&str, u64)) -> Used {
        Used { digest: digest(name), ago: Duration::from_secs(*ago) }
    }

    fn names(names: &[&str]) -> Vec<Descriptor> {
        let descriptor =
            |name: &&str| Descriptor { media_type: String::new(), digest: digest(name), size: 0, platform: None };
        names.iter().map(descriptor).collect()
    }

    struct Given<'a> {
        blobs: &'a [(&'a str, u64)],
        /// name, age, layers, manifests
        manifests: &'a [(&'a str, u64, &'a [&'a str], &'a [&'a str])],
        tagged: &'a [&'a str],
        keep: &'a [&'a str],
    }

    fn check(case: &str, given: &Given<'_>, want_blobs: &[&str], want_manifests: &[&str]) {
        let manifest = |(name, ago, layers, manifests): &(&str, u64, &[&str], &[&str])| {
            let references = References { layers: names(layers), manifests: names(manifests), ..References::default() };
            (used(&(*name, *ago)), references)
        };
        let inventory = Inventory {
            blobs: given.blobs.iter().map(used).collect(),
            manifests: given.manifests.iter().map(manifest).collect(),
            tagged: given.tagged.iter().map(|name| digest(name)).collect(),
        };
        let keep = given.keep.iter().map(|name| digest(name)).collect();
        let want = Doomed {
            blobs: want_blobs.iter().map(|name| digest(name)).collect(),
            manifests: want_manifests.iter().map(|name| digest(name)).collect(),
        };
        assert_eq!(plan(&inventory, &keep, Duration::from_secs(60)), want, "{case}");
    }

    #[test]
    fn what_goes() {
        let image: &[(&str, u64, &[&str], &[&str])] = &[("image", 99, &["layer"], &[])];
        let blobs = &[("layer", 99), ("source", 99)];
        let given = Given { blobs, manifests: image, tagged: &[], keep: &[] };
        check("nothing is kept", &given, &["layer", "source"], &["image"]);
        check("a kept image keeps its layers", &Given { keep: &["image"], ..given }, &["source"], &[]);
        check("so does a tagged one", &Given { tagged: &["image"], ..given }, &["source"], &[]);
        check("a kept blob", &Given { keep: &["source"], ..given }, &["layer"], &["image"]);
        let fresh = &[("layer", 99), ("source", 59)];
        check("a blob that was just used", &Given { blobs: fresh, ..given }, &["layer"], &["image"]);
        let fresh: &[(&str, u64, &[&str], &[&str])] = &[("image", 0, &["layer"], &[])];
        check("an image that was just pushed", &Given { manifests: fresh, ..given }, &["source"], &[]);
        let index: &[(&str, u64, &[&str], &[&str])] =
            &[("index", 99, &[], &["image", "index"]), ("image", 99, &["layer"], &[]), ("other", 99, &["source"], &[])];
        check(
            "an index keeps its images",
            &Given { manifests: index, keep: &["index"], ..given },
            &["source"],
            &["other"],
        );
    }
}
