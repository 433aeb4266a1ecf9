//! Several services behind one socket. tonic's own `Routes` are those of a web framework, which takes each call through
//! layers that are compiled for each service; of a path of gRPC only the first part is looked up.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::{Service, ServiceExt as _};

type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;
type Answer = Arc<dyn Fn(Request<Body>) -> Answering + Send + Sync>;

/// Services by their names; what none of them is, is `UNIMPLEMENTED`. Cheap to clone.
#[derive(Clone, Default)]
pub struct Routes(Arc<BTreeMap<&'static str, Answer>>);

impl std::fmt::Debug for Routes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Routes {
    /// With one service.
    #[must_use]
    pub fn new<S>(service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
        S: NamedService + Clone + Send + Sync + 'static,
        S::Future: Send,
    {
        Self::default().add_service(service)
    }

    /// With one more.
    #[must_use]
    pub fn add_service<S>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
        S: NamedService + Clone + Send + Sync + 'static,
        S::Future: Send,
    {
        let answer = move |request| Box::pin(service.clone().oneshot(request)) as Answering;
        Arc::make_mut(&mut self.0).insert(S::NAME, Arc::new(answer));
        self
    }
}

impl Service<Request<Body>> for Routes {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answering {
        // `/machine.MachineService/Version`
        let named = request.uri().path().strip_prefix('/').and_then(|path| path.split_once('/'));
        match named.and_then(|(name, _)| self.0.get(name)) {
            Some(answer) => answer(request),
            None => Box::pin(ready(Ok(Status::unimplemented("").into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with this header.
    #[derive(Clone)]
    struct Named;

    impl NamedService for Named {
        const NAME: &'static str = "a.Named";
    }

    impl Service<Request<Body>> for Named {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            let path = request.uri().path().to_owned();
            let response = Response::builder().header("path", path).body(Body::empty());
            ready(Ok(response.expect("a path can be a header")))
        }
    }

    #[tokio::test]
    async fn calls_go_to_the_service_of_their_path() {
        let routes = Routes::new(Named);
        for (path, expected) in [
            ("/a.Named/Call", Ok("/a.Named/Call")),
            ("/a.Named/", Ok("/a.Named/")),
            ("/a.Named", Err("12")),
            ("/a.Name/Call", Err("12")),
            ("/a/Named/Call", Err("12")),
            ("/", Err("12")),
        ] {
            let request = Request::builder().uri(path).body(Body::empty()).expect("a request");
            let Ok(response) = routes.clone().oneshot(request).await;
            let header = |name| response.headers().get(name).and_then(|text| text.to_str().ok());
            assert_eq!(header("path"), expected.ok(), "{path}");
            assert_eq!(header("grpc-status"), expected.err(), "{path}");
        }
    }
}
