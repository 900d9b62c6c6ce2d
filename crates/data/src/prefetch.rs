//! Reading ahead on a thread: a fixed set of buffers goes round between a thread that fills them and the consumer.

use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};
use lgm_core::{Error, Result};

/// A thread that keeps buffers filled ahead of their use.
///
/// The buffers are handed in once and recycled, so memory is bounded by their number. They arrive in the order in which
/// they were filled. Dropping the prefetcher stops the thread after the fill in progress and waits for it.
pub struct Prefetch<B> {
    // Both are `None` only while dropping.
    filled: Option<Receiver<Result<B>>>,
    empty: Option<Sender<B>>,
    thread: Option<JoinHandle<()>>,
    name: String,
}

impl<B: Send + 'static> Prefetch<B> {
    /// Starts a thread called `name` that runs `fill` on the buffers, one after another and round again. The first
    /// error that `fill` returns is handed to the consumer and ends the thread.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn spawn(
        name: &str,
        buffers: Vec<B>,
        mut fill: impl FnMut(&mut B) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let (empty, todo) = bounded::<B>(buffers.len().max(1));
        let (done, filled) = bounded(buffers.len().max(1));
        for buffer in buffers {
            empty.send(buffer).map_err(|_| Error::internal("a prefetch channel closed before it was used"))?;
        }
        let run = move || {
            for mut buffer in todo {
                let result = fill(&mut buffer);
                let failed = result.is_err();
                if done.send(result.map(|()| buffer)).is_err() || failed {
                    return;
                }
            }
        };
        let thread =
            thread::Builder::new().name(name.into()).spawn(run).map_err(Error::io(name, "start the thread"))?;
        Ok(Prefetch { filled: Some(filled), empty: Some(empty), thread: Some(thread), name: name.into() })
    }

    /// The next filled buffer; waits for it. Give it back with [`Prefetch::recycle`].
    ///
    /// # Errors
    /// What `fill` returned; once only, later calls report that the thread has ended.
    pub fn receive(&mut self) -> Result<B> {
        match self.filled.as_ref().map(Receiver::recv) {
            Some(Ok(result)) => result,
            _ => Err(Error::config(format!("the thread '{}' has ended after an earlier error", self.name))),
        }
    }

    /// Gives a buffer back to be filled again.
    pub fn recycle(&self, buffer: B) {
        if let Some(empty) = &self.empty {
            // The thread may have ended after an error; the next call of `receive` returns it.
            let _ = empty.send(buffer);
        }
    }
}

impl<B> Drop for Prefetch<B> {
    fn drop(&mut self) {
        self.empty = None;
        self.filled = None;
        if let Some(thread) = self.thread.take() {
            // A panic in `fill` has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn buffers_arrive_in_order_and_go_round() {
        let mut n = 0;
        let mut p = Prefetch::spawn("count", vec![0usize; 3], move |b| {
            *b = n;
            n += 1;
            Ok(())
        })
        .unwrap();
        for want in 0..20 {
            let b = p.receive().unwrap();
            assert_eq!(b, want);
            p.recycle(b);
        }
    }

    #[test]
    fn never_more_in_flight_than_buffers() {
        let fills = Arc::new(AtomicUsize::new(0));
        let seen = fills.clone();
        let mut p = Prefetch::spawn("bounded", vec![(); 2], move |_| {
            seen.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
        .unwrap();
        p.receive().unwrap();
        p.receive().unwrap();
        thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(fills.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn an_error_reaches_the_consumer_after_the_good_buffers() {
        let mut n = 0;
        let mut p = Prefetch::spawn("fails", vec![0; 2], move |b| {
            n += 1;
            *b = n;
            if n == 3 { Err(Error::config("record 3 is damaged")) } else { Ok(()) }
        })
        .unwrap();
        for want in 1..=2 {
            let b = p.receive().unwrap();
            assert_eq!(b, want);
            p.recycle(b);
        }
        assert!(p.receive().unwrap_err().to_string().contains("record 3 is damaged"));
        assert!(p.receive().unwrap_err().to_string().contains("'fails' has ended"));
    }

    #[test]
    fn a_panic_in_the_thread_is_an_error_not_a_hang() {
        let mut p = Prefetch::spawn("panics", vec![()], |_| panic!("deliberate")).unwrap();
        assert!(p.receive().is_err());
    }

    #[test]
    fn dropping_joins_the_thread() {
        let alive = Arc::new(());
        let held = alive.clone();
        let p = Prefetch::spawn("joins", vec![(); 4], move |_| {
            let _ = &held;
            Ok(())
        })
        .unwrap();
        drop(p);
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}
