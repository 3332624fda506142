//! The VAE as two streams: pixels in, latents out, and back. A stream owns the feature caches of its convolutions and says when they start
//! anew; one latent frame is one call, so memory does not grow with the video.

use std::sync::Arc;

use engines::backend::{Backend, EngineError, FeatureCache, Outputs, Session, State};
use engines::components::vae::{self, VaeConfig};
use engines::contract::{Contract, Port, Sizes};
use engines::memory::{Class, Memory};
use engines::tensor::{Tensor, View};

use crate::numbers::latents;
use crate::placement::devices::run_on_host;
use engines::backend::Loading;

/// A component for the first frame and one for the following, over one feature cache.
struct Stream {
    first: Box<dyn Session>,
    next: Box<dyn Session>,
    cache: FeatureCache,
    started: bool,
    /// Where the caches lie.
    memory: Arc<dyn Memory>,
}

impl Stream {
    fn load(
        backend: &dyn Backend,
        options: Loading<'_>,
        first: &Contract,
        next: &Contract,
    ) -> Result<Self, EngineError> {
        let load = |c: &Contract| backend.load(c.name, &options(c.name));
        Ok(Self {
            first: load(first)?,
            next: load(next)?,
            cache: FeatureCache::new(),
            started: false,
            memory: Arc::clone(backend.memory()),
        })
    }

    /// The next call, from a host tensor to host tensors; caches that the first frame never enters start at zeros. `latent` is the size of
    /// a latent frame.
    fn run(
        &mut self,
        config: &VaeConfig,
        latent: (usize, usize),
        port: &Port,
        input: View<'_>,
    ) -> Result<Outputs, EngineError> {
        let session = if self.started {
            self.zeros(config, latent)?;
            &mut self.next
        } else {
            self.cache.clear();
            self.started = true;
            &mut self.first
        };
        let state = State::Replace(&mut self.cache);
        run_on_host(session.as_mut(), &*self.memory, &[(port, input)], state)
    }

    /// Fills in the caches that are not there yet.
    fn zeros(&mut self, config: &VaeConfig, latent: (usize, usize)) -> Result<(), EngineError> {
        let mut sizes = config.bindings();
        sizes.extend([
            ("H".to_owned(), latent.0 as i64),
            ("W".to_owned(), latent.1 as i64),
        ]);
        let recipe = self.next.recipe();
        for port in self.next.contract().state {
            if self.cache.contains_key(port.name) {
                continue;
            }
            let dims = port.dims();
            let dims = dims.iter().map(|d| d.eval(&sizes).unwrap_or_default());
            let dims: Vec<usize> = dims.map(|n| n as usize).collect();
            let dtype = port.dtype(recipe);
            let zeros = Tensor::zeros_in(&*self.memory, Class::Activations, dtype, &dims)?;
            self.cache.insert(port.name, zeros);
        }
        Ok(())
    }
}

/// Pixels to latents: the first frame, then four at a time.
pub struct Encoder {
    stream: Stream,
    config: VaeConfig,
}

impl Encoder {
    /// # Errors
    /// A component that does not load.
    pub fn load(
        backend: &dyn Backend,
        options: Loading<'_>,
        config: &VaeConfig,
    ) -> Result<Self, EngineError> {
        let stream = Stream::load(backend, options, &vae::ENCODER_FIRST, &vae::ENCODER_NEXT)?;
        Ok(Self {
            stream,
            config: config.clone(),
        })
    }

    /// Encodes a whole video from scratch: frames `[3, H, W]` in [-1, 1] to `[1, Z, 1 + (T-1)/4, H/8, W/8]`. Frames beyond the last
    /// whole chunk are dropped, as the reference does. Panics without frames.
    ///
    /// # Errors
    /// A graph that fails.
    pub fn encode<'f>(
        &mut self,
        frames: impl IntoIterator<Item = &'f Tensor>,
    ) -> Result<Tensor, EngineError> {
        self.stream.started = false;
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
        let mut out = self.stream.run(&self.config, latent, port, pixels.view())?;
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

/// Latents to frames.
pub struct Decoder {
    stream: Stream,
    config: VaeConfig,
}

impl Decoder {
    /// # Errors
    /// A component that does not load.
    pub fn load(
        backend: &dyn Backend,
        options: Loading<'_>,
        config: &VaeConfig,
    ) -> Result<Self, EngineError> {
        let stream = Stream::load(backend, options, &vae::DECODER_FIRST, &vae::DECODER_NEXT)?;
        Ok(Self {
            stream,
            config: config.clone(),
        })
    }

    /// Forgets everything: the next latent frame is a first one.
    pub fn reset(&mut self) {
        self.stream.started = false;
    }

    /// Feature caches by port name, for comparison with a reference.
    pub fn cache(&self) -> &FeatureCache {
        &self.stream.cache
    }

    /// Decodes one latent frame `[1, Z, 1, H/8, W/8]`.
    ///
    /// # Errors
    /// A graph that fails.
    pub fn decode_one(&mut self, latent: View<'_>) -> Result<Frames, EngineError> {
        let size = (latent.shape()[3], latent.shape()[4]);
        let mut out = self.stream.run(&self.config, size, &vae::LATENTS, latent)?;
        Ok(Frames {
            pixels: out.take(&vae::FRAMES_NEXT),
            rgb: out.take(&vae::FRAMES_U8_NEXT),
        })
    }

    /// Decodes latent frames `[1, Z, F, H/8, W/8]` one after the other and joins what they give.
    ///
    /// # Errors
    /// A graph that fails.
    pub fn decode(&mut self, latents: &Tensor) -> Result<Frames, EngineError> {
        let each = (0..latents.shape()[2])
            .map(|i| self.decode_one(latents::frames(latents, i..i + 1).view()));
        let parts = each.collect::<Result<Vec<Frames>, EngineError>>()?;
        Ok(Frames::join(&parts))
    }
}

impl Frames {
    /// Joins along time. Panics on an empty list.
    pub fn join(parts: &[Frames]) -> Self {
        let pixels: Vec<Tensor> = parts.iter().map(|p| p.pixels.clone()).collect();
        Self {
            pixels: latents::join(&pixels),
            rgb: Tensor::stack(parts.iter().map(|p| p.rgb.view())),
        }
    }

    /// Frames in time.
    pub fn count(&self) -> usize {
        self.rgb.shape()[0]
    }

    /// Without the first `n` frames.
    pub fn skip(self, n: usize) -> Self {
        if n == 0 {
            return self;
        }
        let count = self.count();
        Self {
            pixels: latents::frames(&self.pixels, n..count),
            rgb: self.rgb.lanes(n..count).to_tensor(),
        }
    }
}
