//! Uploads in progress through the distribution API: begun by POST, fed by PATCH, finished by PUT.
//!
//! They live in memory, with their file; a restart forgets them and clients begin again. Bounded in number: the
//! longest idle one makes room.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::blobs::Ingest;

/// Enough for a builder that pushes many layers at once; each holds one open file.
const MAX_UPLOADS: usize = 64;

#[derive(Default)]
pub(crate) struct Uploads(Mutex<HashMap<String, Upload>>);

pub(crate) struct Upload {
    pub repository: String,
    pub ingest: Ingest,
    used: Instant,
}

impl Uploads {
    /// Keeps an upload until its next request, and names it.
    pub fn begin(&self, repository: &str, ingest: Ingest) -> String {
        // Only unique, not secret: whoever may name one may write anyway.
        let random = || std::hash::RandomState::new().build_hasher().finish();
        let id = format!("{:016x}{:016x}", random(), random());
        self.put_back(id.clone(), repository, ingest);
        id
    }

    /// Takes an upload out while a request works on it. A request that breaks off loses it.
    pub fn take(&self, id: &str, repository: &str) -> Option<Ingest> {
        let mut uploads = self.lock();
        uploads.get(id).filter(|upload| upload.repository == repository)?;
        uploads.remove(id).map(|upload| upload.ingest)
    }

    pub fn put_back(&self, id: String, repository: &str, ingest: Ingest) {
        let mut uploads = self.lock();
        if uploads.len() >= MAX_UPLOADS {
            let idlest = uploads.iter().min_by_key(|(_, upload)| upload.used).map(|(id, _)| id.clone());
            if let Some(idlest) = idlest {
                tracing::warn!(upload = idlest, "too many uploads in progress; the longest idle one was dropped");
                uploads.remove(&idlest);
            }
        }
        uploads.insert(id, Upload { repository: repository.into(), ingest, used: Instant::now() });
    }

    pub fn size(&self, id: &str, repository: &str) -> Option<u64> {
        self.lock().get(id).filter(|upload| upload.repository == repository).map(|upload| upload.ingest.size())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Upload>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
