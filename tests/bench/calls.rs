//! Small calls over one connection: `cargo bench --bench calls`

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;

use common::{Python, Server, median, micros, ratio, rounds, time, verdict};
use noxrunner::Client;

const CALLS: usize = 2000;
const ROUNDS: usize = 15;

fn main() {
    touch();
    connections();
}

fn touch() {
    let server = Server::start(None);
    let sandbox = Client::new(&server.url)
        .expect("a client")
        .sandbox("bench")
        .expect("a handle");
    let mut ours = || time(|| (0..CALLS).for_each(|_| sandbox.touch().expect("touched")));

    let agent = ureq::Agent::new_with_defaults();
    let url = format!("{}/v1/sandboxes/bench/touch", server.url);
    let mut bare =
        || time(|| (0..CALLS).for_each(|_| drop(agent.post(&url).send_empty().expect("touched"))));

    let mut stream =
        TcpStream::connect(server.url.trim_start_matches("http://")).expect("connected");
    stream.set_nodelay(true).expect("set");
    let request =
        "POST /v1/sandboxes/bench/touch HTTP/1.1\r\nHost: bench\r\nContent-Length: 0\r\n\r\n";
    let mut answer = [0_u8; 1024];
    let mut raw = || {
        time(|| {
            for _ in 0..CALLS {
                stream.write_all(request.as_bytes()).expect("written");
                assert!(stream.read(&mut answer).expect("read") > 0);
            }
        })
    };

    let mut python = Python::start(&server.url);
    let mut slow = || {
        python
            .as_mut()
            .map_or(f64::NAN, |p| p.ask(&format!("touch {}", CALLS / 10)) * 10.0)
    };

    let seconds = rounds(ROUNDS, &mut [&mut ours, &mut bare, &mut raw, &mut slow]);
    let per_call = |n: usize| micros(median(seconds[n].clone()) / CALLS as f64);
    println!(
        "touch: ours {:?}, bare ureq {:?}, raw TcpStream {:?} a call",
        per_call(0),
        per_call(1),
        per_call(2)
    );
    let over_bare = ratio(&seconds[0], &seconds[1]);
    println!(
        "touch over bare ureq: {over_bare:.3} (at most 1.15): {}",
        verdict(over_bare <= 1.15)
    );
    println!(
        "raw TcpStream over ours: {:.3}",
        ratio(&seconds[2], &seconds[0])
    );
    if !seconds[3][0].is_nan() {
        let faster = ratio(&seconds[3], &seconds[0]);
        println!(
            "Python client over ours: {faster:.1} (at least 6): {}",
            verdict(faster >= 6.0)
        );
    }
}

fn connections() {
    let server = Server::start(None);
    let sandbox = Client::new(&server.url)
        .expect("a client")
        .sandbox("bench")
        .expect("a handle");
    (0..1000).for_each(|_| sandbox.touch().expect("touched"));
    let count = server.connections.load(Ordering::SeqCst);
    println!(
        "connections for 1,000 calls: {count} (1): {}",
        verdict(count == 1)
    );
}
