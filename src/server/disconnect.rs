//! Clients that disconnect during a call.

use crate::cancel::Cancel;

/// Cancels the command of a call when the call is dropped, because its client has disconnected.
#[derive(Default)]
pub(super) struct CancelOnDrop(pub(super) Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
