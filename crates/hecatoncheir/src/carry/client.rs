//! One client's connection: bytes from its socket to the guest and back, each way as fast as the other side takes them.

use std::io;
use std::sync::Arc;

use tartarus_guest::frame::MAX_PAYLOAD;
use tartarus_guest::{Header, Kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::OwnedSemaphorePermit;

use super::{Carriers, Dialled, Stage};

/// A client's socket. One that is closed before all was carried is reset, so that nobody takes a part for the whole.
struct Client {
    socket: TcpStream,
    whole: bool,
}

impl Drop for Client {
    fn drop(&mut self) {
        if !self.whole {
            let _ = self.socket.set_zero_linger();
        }
    }
}

/// Carries `socket` to `port` of the guest's loopback until both directions ended, or it is cut off.
pub(crate) async fn serve(socket: TcpStream, carriers: Arc<Carriers>, slot: OwnedSemaphorePermit, port: u16) {
    let mut client = Client { socket, whole: false };
    let _ = client.socket.set_nodelay(true);
    let Some(dialled) = carriers.dial(slot, port).await else { return };
    let mut stage = dialled.carrier.stage.subscribe();
    let (mut read, mut write) = client.socket.split();
    let both = async { tokio::try_join!(dialled.read_client(&mut read), dialled.write_client(&mut write)) };
    let whole = tokio::select! {
        biased;
        done = both => done.is_ok(),
        _ = stage.wait_for(|stage| *stage == Stage::Over) => false,
    };
    client.whole = whole;
}

impl Dialled {
    async fn read_client(&self, read: &mut ReadHalf<'_>) -> io::Result<()> {
        let (carrier, outbox) = (&self.carrier, &self.carriers.outbox);
        let mut bytes = vec![0; MAX_PAYLOAD];
        loop {
            let room = carrier.lock().outgoing.room();
            if room == 0 {
                carrier.taken.notified().await;
                continue;
            }
            let count = read.read(&mut bytes[..room.min(MAX_PAYLOAD)]).await?;
            self.carriers.used();
            let header = |kind, offset| Header { offset, ..Header::new(kind, self.number) };
            if count == 0 {
                let end = carrier.lock().outgoing.end();
                outbox.frame(header(Kind::CarryEof, end), &[]);
                break;
            }
            let room = outbox.room(count).await.ok_or(io::ErrorKind::ConnectionReset)?;
            let offset = carrier.lock().outgoing.send(count);
            outbox.carried(room, header(Kind::Carry, offset), &bytes[..count]);
        }
        // Until then the guest may still hold it, so that one more would be too many for it.
        while !carrier.lock().outgoing.is_over() {
            carrier.taken.notified().await;
        }
        Ok(())
    }

    async fn write_client(&self, write: &mut WriteHalf<'_>) -> io::Result<()> {
        let carrier = &self.carrier;
        loop {
            let (bytes, ended) = {
                let mut state = carrier.lock();
                let bytes = std::mem::take(&mut state.inbox);
                (bytes, state.incoming.is_over())
            };
            if ended {
                break;
            }
            if bytes.is_empty() {
                carrier.arrived.notified().await;
            }
            for part in bytes.chunks(MAX_PAYLOAD) {
                write.write_all(part).await?;
                self.carriers.used();
                carrier.lock().incoming.take(part.len());
                self.acknowledge();
            }
        }
        write.shutdown().await?;
        self.acknowledge();
        Ok(())
    }

    fn acknowledge(&self) {
        let due = self.carrier.lock().incoming.due();
        if let Some(offset) = due {
            self.carriers.outbox.frame(Header { offset, ..Header::new(Kind::Carried, self.number) }, &[]);
        }
    }
}
