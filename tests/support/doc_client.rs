{
    // What the examples of the documentation run on: a client that needs no server.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let backend = noxrunner::LocalBackend::builder()
        .isolation(noxrunner::Isolation::None)
        .state_dir(dir.path().join("state"))
        .build()
        .expect("a local backend");
    (noxrunner::Client::with_backend(backend), dir)
}
