{
    // The client of the documentation's examples. It needs no server.
    let dir = tempfile::tempdir().expect("a temporary directory");
    (noxrunner::Client::local().expect("a local sandbox"), dir)
}
