//! How messages become bytes: as tonic does it, but with smaller buffers, and with one piece of code for all methods.
//!
//! - tonic gives every call 8 KiB for each direction before its first byte. PID 1 holds a thousand streams open whose
//!   messages have a hundred bytes each; buffers that must be larger grow.
//! - tonic compiles the way from the bytes of a request to those of its answer anew for every method, client and server:
//!   some 12 KB each. Here only what is a message's own is: `build.rs` has the generated code go through [`Bare`].

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;

use bytes::{Buf as _, BufMut as _, Bytes};
use prost::Message;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::tokio_stream::{Stream, StreamExt as _};
use tonic::codegen::{Body as HttpBody, StdError};
use tonic::server::{ServerStreamingService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Bytes a call's buffers begin with.
const BUFFER: usize = 512;
/// Bytes that are encoded before they are handed on.
const HAND_ON: usize = 32 << 10;

fn settings() -> BufferSettings {
    BufferSettings::new(BUFFER, HAND_ON)
}

/// `application/grpc+proto` for messages that are sent (`T`) and received (`U`).
#[derive(Clone, Debug)]
pub struct SmallCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(settings())
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(settings())
    }
}

/// The same for messages of any kind: they are given as what can write itself, and received as their bytes.
#[derive(Clone, Copy, Debug)]
pub struct Bare;

/// A message that is sent.
pub struct Outgoing(Box<dyn Write + Send + Sync>);

trait Write {
    fn write(&self, to: &mut EncodeBuf<'_>);
}

impl<T: Message> Write for T {
    fn write(&self, to: &mut EncodeBuf<'_>) {
        // It grows.
        self.encode_raw(to);
    }
}

impl Outgoing {
    fn new<T: Message + 'static>(message: T) -> Self {
        Self(Box::new(message))
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Outgoing")
    }
}

impl Codec for Bare {
    type Encode = Outgoing;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bare {
    type Item = Outgoing;
    type Error = Status;

    fn encode(&mut self, message: Outgoing, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.0.write(to);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        settings()
    }
}

impl Decoder for Bare {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }

    fn buffer_settings(&self) -> BufferSettings {
        settings()
    }
}

/// As tonic tells it.
fn unreadable(error: prost::DecodeError) -> Status {
    Status::internal(error.to_string())
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;
type Outgoings = Pin<Box<dyn Stream<Item = Result<Outgoing, Status>> + Send>>;
type Method<T> = Box<dyn FnMut(Request<Bytes>) -> Answer<T> + Send>;

/// A method of any messages with one answer, for a server.
pub struct Unary(Method<Outgoing>);

/// A method of any messages with a stream of answers.
pub struct ServerStreaming(Method<Outgoings>);

/// A method that reads its request and writes its answer.
pub fn unary<S, T>(mut service: S) -> Unary
where
    S: UnaryService<T> + Send + 'static,
    S::Response: Message + 'static,
    S::Future: Send + 'static,
    T: Message + Default,
{
    Unary(Box::new(move |request| match read(request) {
        Ok(request) => {
            let answering = service.call(request);
            Box::pin(async move { Ok(answering.await?.map(Outgoing::new)) })
        }
        Err(status) => Box::pin(std::future::ready(Err(status))),
    }))
}

/// A method that reads its request and writes its answers.
pub fn server_streaming<S, T>(mut service: S) -> ServerStreaming
where
    S: ServerStreamingService<T> + Send + 'static,
    S::Response: Message + 'static,
    S::ResponseStream: Send + 'static,
    S::Future: Send + 'static,
    T: Message + Default,
{
    ServerStreaming(Box::new(move |request| match read(request) {
        Ok(request) => {
            let answering = service.call(request);
            Box::pin(async move {
                Ok(answering.await?.map(|answers| {
                    Box::pin(answers.map(|answer| answer.map(Outgoing::new))) as Outgoings
                }))
            })
        }
        Err(status) => Box::pin(std::future::ready(Err(status))),
    }))
}

fn read<T: Message + Default>(request: Request<Bytes>) -> Result<Request<T>, Status> {
    let (metadata, extensions, bytes) = request.into_parts();
    let message = T::decode(bytes).map_err(unreadable)?;
    Ok(Request::from_parts(metadata, extensions, message))
}

impl UnaryService<Bytes> for Unary {
    type Response = Outgoing;
    type Future = Answer<Outgoing>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        (self.0)(request)
    }
}

impl ServerStreamingService<Bytes> for ServerStreaming {
    type Response = Outgoing;
    type ResponseStream = Outgoings;
    type Future = Answer<Outgoings>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        (self.0)(request)
    }
}

/// A call with one answer, of a client.
pub async fn call<C, T, U>(
    client: &mut tonic::client::Grpc<C>,
    request: Request<T>,
    path: PathAndQuery,
    _: SmallCodec<T, U>,
) -> Result<Response<U>, Status>
where
    C: GrpcService<Body>,
    C::Error: Into<StdError>,
    C::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <C::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
    T: Message + 'static,
    U: Message + Default,
{
    // On the heap, lest each method has all of it in its own state.
    let answer = Box::pin(call_bare(client, request.map(Outgoing::new), path)).await?;
    let (metadata, bytes, extensions) = answer.into_parts();
    Ok(Response::from_parts(metadata, U::decode(bytes).map_err(unreadable)?, extensions))
}

async fn call_bare<C>(
    client: &mut tonic::client::Grpc<C>,
    request: Request<Outgoing>,
    path: PathAndQuery,
) -> Result<Response<Bytes>, Status>
where
    C: GrpcService<Body>,
    C::Error: Into<StdError>,
    C::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <C::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
{
    ready(client).await?.unary(request, path, Bare).await
}

/// A client when it may call.
pub async fn ready<C>(
    client: &mut tonic::client::Grpc<C>,
) -> Result<&mut tonic::client::Grpc<C>, Status>
where
    C: GrpcService<Body>,
    C::Error: Into<StdError>,
{
    match client.ready().await {
        Ok(()) => Ok(client),
        Err(error) => Err(Status::unknown(format!("Service was not ready: {}", error.into()))),
    }
}

/// For answers that were encoded once for many callers: what is sent are a message's own bytes.
#[derive(Clone, Copy, Debug)]
pub struct Encoded<U>(PhantomData<U>);

impl<U> Default for Encoded<U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<U: Message + Default + Send + 'static> Codec for Encoded<U> {
    type Encode = Bytes;
    type Decode = U;
    type Encoder = Verbatim;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Verbatim {
        Verbatim
    }

    fn decoder(&mut self) -> Self::Decoder {
        SmallCodec::<(), U>::default().decoder()
    }
}

/// Sends bytes as they are.
#[derive(Clone, Copy, Debug)]
pub struct Verbatim;

impl Encoder for Verbatim {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        settings()
    }
}
