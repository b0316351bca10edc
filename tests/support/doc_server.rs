{
    // The server of the checker's examples. It answers only the health check.
    use std::io::{BufRead, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a loopback port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut lines = std::io::BufReader::new(&stream).lines().map_while(Result::ok);
            let head = lines.find(|line| line.is_empty());
            let answer = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK";
            let _ = head.map(|_| stream.write_all(answer.as_bytes()));
        }
    });
    url
}
