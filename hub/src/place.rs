//! The place that a connection takes among those that are allowed, until its last byte.
//!
//! A connection that became a WebSocket is no longer the server's: hyper hands the stream over and is done. So the place
//! belongs to the stream itself, and is given back when that is dropped, wherever it went.

use crate::app::admission::Turn;
use crate::server::ListenerCounters;
use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

/// A place, given back when it is dropped. While it is held, its connection counts as open.
#[derive(Debug)]
pub(crate) struct Place {
    counters: Arc<ListenerCounters>,
    permit: OwnedSemaphorePermit,
    /// One of those that its address has, until it is known whose it is.
    of_address: Option<Turn<String>>,
    of_agent: Option<Turn<Uuid>>,
}

impl Place {
    /// A connection's first place, which is one of its address's where these are counted.
    pub(crate) fn new(
        counters: Arc<ListenerCounters>,
        permit: OwnedSemaphorePermit,
        of_address: Option<Turn<String>>,
    ) -> Self {
        counters.open.fetch_add(1, Ordering::Relaxed);
        Self { counters, permit, of_address, of_agent: None }
    }

    /// Gives the place back for another one, which is one of an agent's own.
    pub(crate) fn change(&mut self, permit: OwnedSemaphorePermit, turn: Turn<Uuid>) {
        (self.permit, self.of_address, self.of_agent) = (permit, None, Some(turn));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.counters.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream that has a place.
#[derive(Debug)]
pub(crate) struct Placed<S> {
    stream: S,
    _place: Place,
}

impl<S> Placed<S> {
    /// The stream in this place.
    pub(crate) fn new(stream: S, place: Place) -> Self {
        Self { stream, _place: place }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Placed<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Placed<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
