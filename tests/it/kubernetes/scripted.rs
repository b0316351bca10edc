//! What a real cluster cannot show quickly, on a scripted API server.
