{
    // What the examples of the documentation run on: a client that needs no server.
    let dir = tempfile::tempdir().expect("a temporary directory");
    (noxrunner::Client::local().expect("a local sandbox"), dir)
}
