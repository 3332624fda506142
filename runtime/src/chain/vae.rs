//! The VAE over time: pixels in, latents out, and back. A direction owns the feature caches of its
//! convolutions and says when they start anew. One latent frame is one call, so memory does not
//! grow with the video.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use engines::backend::{Backend, EngineError, FeatureCache, Loading, Outputs, Session, State};
use engines::cancel::Cancel;
use engines::components::symbols;
use engines::components::vae::{self, VaeConfig};
use engines::contract::{Contract, Port, Sizes};
use engines::memory::{Class, Memory};
use engines::tensor::{Tensor, View};
use engines::tensor_file::Tensors;

use crate::chain::host_session::run_on_host;
use crate::numbers::latents;

/// One direction of the VAE with the feature caches of one video. Videos may share the graphs: they
/// take turns.
pub(crate) struct Vae<D> {
    graphs: Arc<Mutex<Graphs>>,
    config: VaeConfig,
    cache: FeatureCache,
    started: bool,
    /// Memory of the caches.
    memory: Arc<dyn Memory>,
    direction: PhantomData<D>,
    /// Stops the video's calls.
    cancel: Cancel,
}

/// The encoder from pixels to latents: first one frame, then four at a time.
pub(crate) type Encoder = Vae<ToLatents>;

/// The decoder from latents to frames.
pub(crate) type Decoder = Vae<ToFrames>;

/// A direction of the VAE.
pub(crate) trait Direction {
    /// Contract of the first call.
    const FIRST: &'static Contract;
    /// Contract of the following calls.
    const NEXT: &'static Contract;
}

/// The direction of the encoder.
pub(crate) enum ToLatents {}

impl Direction for ToLatents {
    const FIRST: &'static Contract = &vae::ENCODER_FIRST;
    const NEXT: &'static Contract = &vae::ENCODER_NEXT;
}

/// The direction of the decoder.
pub(crate) enum ToFrames {}

impl Direction for ToFrames {
    const FIRST: &'static Contract = &vae::DECODER_FIRST;
    const NEXT: &'static Contract = &vae::DECODER_NEXT;
}

/// Loaded graphs of one direction: one for the first frame, one for the following frames.
struct Graphs {
    first: Box<dyn Session>,
    next: Box<dyn Session>,
}

impl<D: Direction> Vae<D> {
    /// Loads the graphs.
    ///
    /// # Errors
    /// A component is missing or does not load.
    pub(crate) fn load(
        backend: &dyn Backend,
        loading: &Loading,
        config: &VaeConfig,
    ) -> Result<Self, EngineError> {
        let load = |c: &Contract| backend.load(c.name, &loading(c.name));
        let graphs = Graphs {
            first: load(D::FIRST)?,
            next: load(D::NEXT)?,
        };
        Ok(Self {
            graphs: Arc::new(Mutex::new(graphs)),
            config: config.clone(),
            cache: FeatureCache::new(),
            started: false,
            memory: Arc::clone(backend.memory()),
            direction: PhantomData,
            cancel: Cancel::default(),
        })
    }

    /// Returns one for another video, on the same graphs, until `cancel` asks to stop. The two take
    /// turns.
    #[must_use]
    pub(crate) fn another(&self, cancel: &Cancel) -> Self {
        Self {
            graphs: Arc::clone(&self.graphs),
            config: self.config.clone(),
            cache: FeatureCache::new(),
            started: false,
            memory: Arc::clone(&self.memory),
            direction: PhantomData,
            cancel: cancel.clone(),
        }
    }

    /// Runs the next call, from a host tensor to host tensors. `latent` is the size of a latent
    /// frame. Caches that the first frame does not fill start at zeros.
    fn run(
        &mut self,
        latent: (usize, usize),
        port: &Port,
        input: View<'_>,
    ) -> Result<Outputs, EngineError> {
        let graphs = Arc::clone(&self.graphs);
        let mut graphs = graphs.lock().unwrap_or_else(PoisonError::into_inner);
        let session = if self.started {
            self.add_zeros(&*graphs.next, latent)?;
            &mut graphs.next
        } else {
            self.cache.clear();
            self.started = true;
            &mut graphs.first
        };
        let state = State::Replace(&mut self.cache);
        let inputs = [(port, input)];
        run_on_host(
            session.as_mut(),
            &*self.memory,
            &inputs,
            state,
            &self.cancel,
        )
    }

    /// Adds the caches that are not there yet.
    fn add_zeros(&mut self, next: &dyn Session, latent: (usize, usize)) -> Result<(), EngineError> {
        let mut sizes = self.config.bindings();
        sizes.extend(symbols::bindings([
            (symbols::LATENT_ROWS, latent.0),
            (symbols::LATENT_COLUMNS, latent.1),
        ]));
        for port in next.contract().state {
            if self.cache.contains_key(port.name) {
                continue;
            }
            let dims = port.dims();
            let dims = dims.iter().map(|d| d.eval(&sizes).unwrap_or_default());
            let dims: Vec<usize> = dims.map(|n| n as usize).collect();
            let dtype = port.dtype(next.recipe());
            let zeros = Tensor::zeros_in(&*self.memory, Class::Activations, dtype, &dims)?;
            self.cache.insert(port.name, zeros);
        }
        Ok(())
    }
}

impl Encoder {
    /// Encodes a whole video from scratch: frames `[3, H, W]` in [-1, 1] to `[1, Z, 1 + (T-1)/4,
    /// H/8, W/8]`. It drops frames after the last whole chunk, as the reference does.
    ///
    /// # Panics
    /// If there are no frames.
    ///
    /// # Errors
    /// A graph fails.
    pub(crate) fn encode<'f>(
        &mut self,
        frames: impl IntoIterator<Item = &'f Tensor>,
    ) -> Result<Tensor, EngineError> {
        self.started = false;
        let mut parts = Vec::new();
        let mut chunk: Vec<&Tensor> = Vec::new();
        for frame in frames {
            chunk.push(frame);
            let wanted = if parts.is_empty() {
                1
            } else {
                vae::TEMPORAL_STRIDE
            };
            if chunk.len() == wanted {
                parts.push(self.chunk(&chunk)?);
                chunk.clear();
            }
        }
        Ok(latents::join(&parts))
    }

    fn chunk(&mut self, frames: &[&Tensor]) -> Result<Tensor, EngineError> {
        let (h, w) = (frames[0].shape()[1], frames[0].shape()[2]);
        let as_video: Vec<Tensor> = frames
            .iter()
            .map(|f| (*f).clone().reshaped(&[1, 3, 1, h, w]))
            .collect();
        let pixels = latents::join(&as_video);
        let latent = (h / vae::SPATIAL_STRIDE, w / vae::SPATIAL_STRIDE);
        let port = if frames.len() == 1 {
            &vae::PIXELS_FIRST
        } else {
            &vae::PIXELS_NEXT
        };
        let mut out = self.run(latent, port, pixels.view())?;
        Ok(out.take(&vae::LATENTS_OUT))
    }
}

/// Decoded frames: one for the first latent frame of a stream, four for each later one.
pub struct Frames {
    /// `[1, 3, T, H, W]` in [-1, 1].
    pub pixels: Tensor,
    /// `[T, H, W, 3]`.
    pub rgb: Tensor,
}

impl Decoder {
    /// Forgets everything: the next latent frame is a first one.
    pub(crate) fn reset(&mut self) {
        self.started = false;
    }

    /// Copies the feature caches to the host, by port name.
    ///
    /// # Errors
    /// The device refuses.
    pub(crate) fn kept(&self) -> Result<Tensors, EngineError> {
        let host = |(name, cache): (&&'static str, &Tensor)| {
            let mut to = Tensor::zeros(cache.dtype(), cache.shape());
            self.memory
                .copy(cache.view().span(), to.view_mut().span_mut())?;
            Ok(((*name).to_owned(), to))
        };
        self.cache.iter().map(host).collect()
    }

    /// Goes on with feature caches that [`Self::kept`] copied.
    ///
    /// # Errors
    /// The graphs have another cache; the device refuses.
    pub(crate) fn restore(&mut self, kept: &Tensors) -> Result<(), EngineError> {
        let graphs = Arc::clone(&self.graphs);
        let graphs = graphs.lock().unwrap_or_else(PoisonError::into_inner);
        let contract = graphs.next.contract();
        let here = |port: &Port| {
            let cache = kept.get(port.name).ok_or_else(|| EngineError::Bind {
                component: contract.name.to_owned(),
                port: port.name.to_owned(),
                want: "a cache in the kept state".to_owned(),
                got: "none".to_owned(),
            })?;
            let cache = cache.copied_to(&*self.memory, Class::Activations)?;
            Ok::<_, EngineError>((port.name, cache))
        };
        self.cache = contract.state.iter().map(here).collect::<Result<_, _>>()?;
        self.started = true;
        Ok(())
    }

    /// Feature caches by port name, for comparison with a reference.
    pub(crate) fn cache(&self) -> &FeatureCache {
        &self.cache
    }

    /// Decodes one latent frame `[1, Z, 1, H/8, W/8]`.
    ///
    /// # Errors
    /// A graph fails.
    pub(crate) fn decode_one(&mut self, latent: View<'_>) -> Result<Frames, EngineError> {
        let size = (latent.shape()[3], latent.shape()[4]);
        let mut out = self.run(size, &vae::LATENTS, latent)?;
        Ok(Frames {
            pixels: out.take(&vae::FRAMES_NEXT),
            rgb: out.take(&vae::FRAMES_U8_NEXT),
        })
    }

    /// Decodes latent frames `[1, Z, F, H/8, W/8]` one after the other and joins what they give.
    ///
    /// # Errors
    /// A graph fails.
    pub(crate) fn decode(&mut self, latents: &Tensor) -> Result<Frames, EngineError> {
        let each = (0..latents.shape()[2])
            .map(|i| self.decode_one(latents::frames(latents, i..i + 1).view()));
        let parts = each.collect::<Result<Vec<Frames>, EngineError>>()?;
        Ok(Frames::join(&parts))
    }
}

impl Frames {
    /// Joins parts along time.
    ///
    /// # Panics
    /// If there are no parts.
    pub fn join(parts: &[Frames]) -> Self {
        let pixels: Vec<Tensor> = parts.iter().map(|p| p.pixels.clone()).collect();
        Self {
            pixels: latents::join(&pixels),
            rgb: Tensor::stack(parts.iter().map(|p| p.rgb.view())),
        }
    }

    /// Counts the frames in time.
    pub fn count(&self) -> usize {
        self.rgb.shape()[0]
    }

    /// Drops the first `n` frames.
    pub fn skip(self, n: usize) -> Self {
        let count = self.count();
        self.range(n..count)
    }

    /// Keeps the first `n` frames, or all if there are fewer.
    pub fn take(self, n: usize) -> Self {
        let count = self.count();
        self.range(0..n.min(count))
    }

    fn range(self, kept: std::ops::Range<usize>) -> Self {
        if kept == (0..self.count()) {
            return self;
        }
        Self {
            pixels: latents::frames(&self.pixels, kept.clone()),
            rgb: self.rgb.lanes(kept).to_tensor(),
        }
    }
}
