//! Tensors on their way from their files: read by several threads, a few ahead of the
//! one that is needed next.

use std::{
    collections::HashMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use candle_core::Tensor;
use sconce_kernels::mapped::{MappedError, MappedSafetensors};

/// Tensors that are read and not yet taken, at most.
const AHEAD: usize = 8;
const MAX_READERS: usize = 4;

/// Reads tensors in a given order. Dropping it ends the threads.
pub(crate) struct ReadAhead {
    shared: Arc<Shared>,
    readers: Vec<JoinHandle<()>>,
}

struct Shared {
    files: Arc<MappedSafetensors>,
    order: Vec<String>,
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Default)]
struct Progress {
    /// Indices in the order: the next to be read, and the next to be taken.
    to_read: usize,
    to_take: usize,
    read: HashMap<usize, Result<Tensor, MappedError>>,
    is_over: bool,
}

impl ReadAhead {
    pub(crate) fn new(files: Arc<MappedSafetensors>, order: Vec<String>) -> Self {
        let shared =
            Arc::new(Shared { files, order, progress: Mutex::default(), changed: Condvar::new() });
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let readers = (0..cores.min(MAX_READERS))
            .filter_map(|_| {
                let shared = Arc::clone(&shared);
                let builder = std::thread::Builder::new().name("sconce-reader".to_owned());
                builder.spawn(move || shared.read()).ok()
            })
            .collect();
        Self { shared, readers }
    }

    /// A tensor, which should be the next in order; others are read now.
    pub(crate) fn take(&self, name: &str) -> Result<Tensor, MappedError> {
        let Shared { files, order, changed, .. } = &*self.shared;
        let mut progress = self.shared.lock();
        let index = progress.to_take;
        if self.readers.is_empty() || order.get(index).is_none_or(|next| next != name) {
            drop(progress);
            return files.load(name);
        }
        loop {
            if let Some(tensor) = progress.read.remove(&index) {
                progress.to_take += 1;
                changed.notify_all();
                return tensor;
            }
            progress = changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.changed.notify_all();
        for reader in self.readers.drain(..) {
            // A panic of it was printed when it happened.
            let _ = reader.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reader's life.
    fn read(&self) {
        let mut progress = self.lock();
        while !progress.is_over && progress.to_read < self.order.len() {
            if progress.to_read >= progress.to_take + AHEAD {
                progress = self.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let index = progress.to_read;
            progress.to_read += 1;
            drop(progress);
            let tensor = self.files.load(&self.order[index]);
            progress = self.lock();
            progress.read.insert(index, tensor);
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc};

    use candle_core::{Device, Tensor};
    use sconce_kernels::mapped::MappedSafetensors;

    use super::{AHEAD, ReadAhead};

    fn files(count: usize) -> (tempfile::TempDir, Arc<MappedSafetensors>, Vec<String>) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("model.safetensors");
        let order: Vec<String> = (0..count).map(|i| format!("tensor {i}")).collect();
        let tensors: HashMap<_, _> = (0_u32..)
            .zip(&order)
            .map(|(i, name)| (name.clone(), Tensor::new(&[i], &Device::Cpu).expect("a tensor")))
            .collect();
        candle_core::safetensors::save(&tensors, &path).expect("it is written");
        (dir, Arc::new(MappedSafetensors::open(&[path]).expect("it is whole")), order)
    }

    fn number(tensor: &Tensor) -> usize {
        tensor.to_vec1::<u32>().expect("a u32")[0] as usize
    }

    #[test]
    fn tensors_come_in_order_and_others_too() {
        let count = 5 * AHEAD;
        let (_dir, files, order) = files(count);
        let ahead = ReadAhead::new(files, order.clone());
        for (i, name) in order.iter().enumerate() {
            // Out of turn.
            let other = (i * 7 + 3) % count;
            if other != i {
                assert_eq!(number(&ahead.take(&order[other]).expect("it is there")), other);
            }
            assert_eq!(number(&ahead.take(name).expect("it is there")), i);
        }
        assert!(ahead.take("no such tensor").is_err());
    }

    #[test]
    fn one_that_is_dropped_early_ends() {
        let (_dir, files, mut order) = files(3 * AHEAD);
        order.insert(1, "no such tensor".to_owned());
        let ahead = ReadAhead::new(files, order.clone());
        assert!(ahead.take(&order[0]).is_ok());
        assert!(ahead.take(&order[1]).is_err(), "an error comes in its turn");
        drop(ahead);
    }
}
