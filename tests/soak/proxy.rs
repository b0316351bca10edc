//! A proxy between client and server that breaks connections.
//!
//! Each connection has one fault, at a random byte of the requests or of the responses.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::random::Random;
use crate::support::processes::wait_for;

/// The longest delay. A request that was delayed may still arrive when its client has given up.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(4);

/// Fault of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Close the connection before anything is read from it.
    Refuse,
    /// Close both connections.
    Cut,
    /// Pause once.
    Delay,
    /// Read on, but forward nothing more, until one side gives up.
    Swallow,
    /// Flip the highest bit of a byte. Heads and JSON are text, where no other character results, and archives
    /// have a checksum. So each such fault is detectable.
    Corrupt,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Request,
    Response,
}

#[derive(Debug, Clone, Copy)]
struct Plan {
    fault: Fault,
    direction: Direction,
    /// The number of bytes in this direction before the fault.
    after: u64,
}

/// A running proxy.
pub(crate) struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    server: PathBuf,
    corrupts: bool,
    stopped: AtomicBool,
    random: Mutex<Random>,
    counts: Mutex<BTreeMap<String, u64>>,
    threads: AtomicUsize,
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<Pair>>>,
}

/// The two connections of a client.
struct Pair {
    client: TcpStream,
    server: UnixStream,
}

impl Pair {
    fn close(&self) {
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }
}

impl FaultProxy {
    /// Starts a proxy for a server on a Unix socket.
    pub(crate) fn start(server: &Path, corrupts: bool, random: Random) -> FaultProxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let shared = Arc::new(Shared {
            server: server.to_owned(),
            corrupts,
            stopped: AtomicBool::new(false),
            random: Mutex::new(random),
            counts: Mutex::default(),
            threads: AtomicUsize::new(0),
            next: AtomicU64::new(0),
            open: Mutex::default(),
        });
        let address = listener.local_addr().unwrap();
        let accepting = Arc::clone(&shared);
        shared.spawn(move || accepting.accept(&listener));
        FaultProxy { address, shared }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns true if the proxy leaves all bytes that it forwards as they are.
    pub(crate) fn is_faithful(&self) -> bool {
        !self.shared.corrupts
    }

    /// Stops the proxy and returns how often it injected each fault.
    pub(crate) fn stop(self) -> BTreeMap<String, u64> {
        self.shared.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        wait_for("the proxy has closed its connections", || {
            let open = self.shared.open.lock().unwrap();
            open.values().for_each(|pair| pair.close());
            self.shared.threads.load(Ordering::SeqCst) == 0
        });
        std::mem::take(&mut *self.shared.counts.lock().unwrap())
    }
}

impl Shared {
    fn spawn(self: &Arc<Self>, run: impl FnOnce() + Send + 'static) {
        let shared = Arc::clone(self);
        shared.threads.fetch_add(1, Ordering::SeqCst);
        thread::spawn(move || {
            run();
            shared.threads.fetch_sub(1, Ordering::SeqCst);
        });
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            if self.stopped.load(Ordering::SeqCst) {
                return;
            }
            // The client may be gone already.
            let Ok(client) = client else { continue };
            let shared = Arc::clone(self);
            self.spawn(move || shared.serve(client));
        }
    }

    fn plan(&self) -> Plan {
        let mut random = self.random.lock().unwrap();
        let fault = match random.below(100) {
            0..10 => Fault::Refuse,
            10..50 => Fault::Cut,
            50..60 => Fault::Swallow,
            60..85 if self.corrupts => Fault::Corrupt,
            _ => Fault::Delay,
        };
        let direction = if random.percent(40) {
            Direction::Request
        } else {
            Direction::Response
        };
        Plan {
            fault,
            direction,
            after: distance(&mut random),
        }
    }

    fn serve(self: &Arc<Self>, client: TcpStream) {
        let plan = self.plan();
        if plan.fault == Fault::Refuse {
            self.count(plan);
            return;
        }
        let Ok(server) = UnixStream::connect(&self.server) else {
            return;
        };
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        let pair = Arc::new(Pair { client, server });
        self.open.lock().unwrap().insert(number, Arc::clone(&pair));
        let (shared, requests) = (Arc::clone(self), Arc::clone(&pair));
        self.spawn(move || {
            let (client, server) = (&requests.client, &requests.server);
            // The response is still on its way.
            if shared.forward(client, server, plan, Direction::Request) {
                let _ = server.shutdown(Shutdown::Write);
            } else {
                requests.close();
            }
        });
        self.forward(&pair.server, &pair.client, plan, Direction::Response);
        pair.close();
        self.open.lock().unwrap().remove(&number);
    }

    /// Copies one direction. Returns true if it ended without a fault.
    fn forward(
        &self,
        mut from: impl Read,
        mut to: impl Write,
        mut plan: Plan,
        direction: Direction,
    ) -> bool {
        let mut buffer = vec![0; 16 * 1024];
        let mut done = 0;
        loop {
            let got = match from.read(&mut buffer) {
                Ok(0) | Err(_) => return true,
                Ok(got) => got,
            };
            let mut bytes = &mut buffer[..got];
            let end = done + got as u64;
            while plan.direction == direction && plan.after < end {
                let at = usize::try_from(plan.after - done).unwrap();
                let (before, rest) = bytes.split_at_mut(at);
                if to.write_all(before).is_err() {
                    return true;
                }
                self.count(plan);
                match plan.fault {
                    Fault::Delay => self.delay(),
                    Fault::Corrupt => rest[0] ^= 0x80,
                    Fault::Swallow => {
                        let _ = io::copy(&mut from, &mut io::sink());
                        return false;
                    }
                    Fault::Refuse | Fault::Cut => return false,
                }
                done = plan.after;
                bytes = rest;
                plan.after += 1 + 16 * distance(&mut self.random.lock().unwrap());
            }
            if to.write_all(bytes).is_err() {
                return true;
            }
            done = end;
        }
    }

    fn delay(&self) {
        let delay = {
            let mut random = self.random.lock().unwrap();
            let most = MAX_DELAY.as_millis() as u64;
            let scale = random.below(most);
            random.millis(0..scale.max(1))
        };
        thread::sleep(delay);
    }

    fn count(&self, plan: Plan) {
        let name = match (plan.fault, plan.direction) {
            (Fault::Refuse, _) => "refused connection".to_owned(),
            (fault, direction) => format!("{fault:?} in a {direction:?}").to_lowercase(),
        };
        *self.counts.lock().unwrap().entry(name).or_default() += 1;
    }
}

/// Returns a number of bytes: often within the first request or response, and sometimes after many.
fn distance(random: &mut Random) -> u64 {
    let bits = random.below(17);
    random.below(1 << bits)
}
