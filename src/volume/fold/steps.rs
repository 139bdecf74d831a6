//! Steps of a fold that become durable while the next one moves: moving keeps a processor busy, a flush the disk.

use std::panic::resume_unwind;
use std::thread::{Builder, Scope, ScopedJoinHandle};

use super::super::host_error::Result;

/// At most one step under way, in a thread of its own.
pub(super) struct Steps<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    under_way: Option<ScopedJoinHandle<'scope, Result<()>>>,
}

impl<'scope, 'env> Steps<'scope, 'env> {
    pub fn new(scope: &'scope Scope<'scope, 'env>) -> Self {
        Self { scope, under_way: None }
    }

    /// Begins a step once the one before is done, so that they are recorded in their order; the answer is of that one.
    pub fn next(&mut self, step: impl FnOnce() -> Result<()> + Send + Clone + 'scope) -> Result<()> {
        self.end()?;
        let in_thread = step.clone();
        match Builder::new().name("terrane-step".into()).spawn_scoped(self.scope, in_thread) {
            Ok(thread) => self.under_way = Some(thread),
            // No thread is to be had: done here it is only slower.
            Err(_) => step()?,
        }
        Ok(())
    }

    /// Waits for the step that is under way, if one is.
    pub fn end(&mut self) -> Result<()> {
        match self.under_way.take().map(ScopedJoinHandle::join) {
            Some(Ok(done)) => done,
            Some(Err(panic)) => resume_unwind(panic),
            None => Ok(()),
        }
    }
}
