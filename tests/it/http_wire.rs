//! What goes over the wire.

use noxrunner::Client;

use crate::support::scripted::Scripted;

#[test]
fn touch_is_a_post_with_an_empty_body() {
    let server = Scripted::always(200, "");
    let sandbox = Client::new(server.url()).unwrap().sandbox("a/b").unwrap();
    sandbox.touch().unwrap();
    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].method, "POST");
    assert_eq!(requests[0].path, "/v1/sandboxes/a%2Fb/touch");
    assert_eq!(requests[0].header("content-length"), Some("0"));
}
