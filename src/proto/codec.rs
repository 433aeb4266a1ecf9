//! How messages become bytes: as tonic does it, but with smaller buffers.
//!
//! tonic gives every call 8 KiB for each direction before its first byte. PID 1 holds a thousand
//! streams open whose messages have a hundred bytes each; buffers that must be larger grow.

use std::marker::PhantomData;

use bytes::{BufMut as _, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Bytes a call's buffers begin with.
const BUFFER: usize = 512;
/// Bytes that are encoded before they are handed on.
const HAND_ON: usize = 32 << 10;

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
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, HAND_ON))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER, HAND_ON))
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
        BufferSettings::new(BUFFER, HAND_ON)
    }
}
