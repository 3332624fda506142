//! The request to stop a run. A signal handler makes it, and everything that takes long hears it:
//! loops ask for it, and calls that cannot ask are told by a watch.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Act = Box<dyn Fn() + Send>;

/// A request to stop. Clones share one request.
///
/// ```
/// use engines::cancel::Cancel;
///
/// let (cancel, (heard, told)) = (Cancel::default(), std::sync::mpsc::channel());
/// let watch = cancel.watch(move || heard.send("stop").unwrap());
/// assert!(!cancel.cancel() && cancel.is_cancelled());
/// assert_eq!(told.recv(), Ok("stop"));
/// drop(watch);
/// ```
#[derive(Clone, Default)]
pub struct Cancel(Arc<Shared>);

#[derive(Default)]
struct Shared {
    asked: AtomicBool,
    next: AtomicU64,
    watches: Mutex<BTreeMap<u64, Act>>,
}

impl Shared {
    fn watches(&self) -> MutexGuard<'_, BTreeMap<u64, Act>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cancel {
    /// Asks to stop. Returns true if a stop was asked for before.
    pub fn cancel(&self) -> bool {
        let before = self.0.asked.swap(true, Ordering::SeqCst);
        self.0.watches().values().for_each(|act| act());
        before
    }

    /// Returns whether a stop was asked for.
    pub fn is_cancelled(&self) -> bool {
        self.0.asked.load(Ordering::SeqCst)
    }

    /// Calls `act` when a stop is asked for, or at once if it was asked for before. The watch ends
    /// when the returned value is dropped.
    #[must_use = "a watch ends when it is dropped"]
    pub fn watch(&self, act: impl Fn() + Send + 'static) -> Watch {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let mut watches = self.0.watches();
        // Under the lock: a stop that comes now either is seen here or finds the watch in the list.
        if self.is_cancelled() {
            act();
        }
        watches.insert(number, Box::new(act));
        drop(watches);
        Watch {
            shared: Arc::clone(&self.0),
            number,
        }
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cancel").field(&self.is_cancelled()).finish()
    }
}

/// A watch on a request to stop; see [`Cancel::watch`].
pub struct Watch {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.watches().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn a_watch_acts_once_also_when_it_comes_late_and_not_after_its_end() {
        let counted = Arc::new(AtomicUsize::new(0));
        let act = || {
            let counted = Arc::clone(&counted);
            move || {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        };
        let cancel = Cancel::default();
        let (kept, dropped) = (cancel.watch(act()), cancel.watch(act()));
        drop(dropped);
        assert!(!cancel.is_cancelled());
        assert!(!cancel.clone().cancel());
        assert_eq!(counted.load(Ordering::SeqCst), 1);
        let late = cancel.watch(act());
        assert_eq!(counted.load(Ordering::SeqCst), 2);
        drop((kept, late));
        assert!(cancel.cancel());
        assert_eq!(counted.load(Ordering::SeqCst), 2);
    }
}
