//! NVIDIA's management library, loaded at run time: the driver's version, and the memory of a
//! device that all processes together use.
//!
//! NVML numbers the devices in another order than CUDA does, and ignores `CUDA_VISIBLE_DEVICES`. So
//! a device is found by its address on the PCI bus.

/// Why NVML cannot be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("NVML (libnvidia-ml.so.1, a part of the NVIDIA driver): {reason}")]
pub struct NvmlError {
    /// The library's or the loader's reason.
    pub reason: String,
}

/// Memory of one device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Bytes in use by any process.
    pub used: u64,
    /// All bytes.
    pub total: u64,
}

/// The loaded library.
#[cfg(feature = "cuda")]
pub struct Nvml(nvml_wrapper::Nvml);

#[cfg(feature = "cuda")]
impl Nvml {
    /// Loads the library.
    ///
    /// # Errors
    /// The library is missing, or refuses to start.
    pub fn load() -> Result<Self, NvmlError> {
        let mut builder = nvml_wrapper::Nvml::builder();
        let library = builder.lib_path("libnvidia-ml.so.1".as_ref());
        library.init().map(Self).map_err(refused)
    }

    /// Returns the version of the driver, such as `580.95.05`.
    ///
    /// # Errors
    /// The library refuses.
    pub fn driver(&self) -> Result<String, NvmlError> {
        self.0.sys_driver_version().map_err(refused)
    }

    /// Returns the memory of CUDA device `ordinal`.
    ///
    /// # Errors
    /// The device does not exist, or the library refuses.
    pub fn memory(&self, ordinal: u32) -> Result<DeviceMemory, NvmlError> {
        let device = crate::memory::cuda::CudaDevice::open(ordinal);
        let address = device.and_then(|d| d.pci_address());
        let address = address.map_err(|e| NvmlError {
            reason: e.to_string(),
        })?;
        let device = self.0.device_by_pci_bus_id(address).map_err(refused)?;
        let memory = device.memory_info().map_err(refused)?;
        Ok(DeviceMemory {
            used: memory.used,
            total: memory.total,
        })
    }
}

#[cfg(feature = "cuda")]
fn refused(error: nvml_wrapper::error::NvmlError) -> NvmlError {
    use nvml_wrapper::error::NvmlError as Theirs;
    let reason = match error {
        Theirs::LibloadingError(source) => std::error::Error::source(&source)
            .map_or_else(|| source.to_string(), ToString::to_string),
        other => other.to_string(),
    };
    NvmlError { reason }
}

/// A stand-in for the library, which this build cannot load.
#[cfg(not(feature = "cuda"))]
pub enum Nvml {}

#[cfg(not(feature = "cuda"))]
impl Nvml {
    /// Returns an error: this build has no CUDA.
    ///
    /// # Errors
    /// Always.
    pub fn load() -> Result<Self, NvmlError> {
        Err(NvmlError {
            reason: "this program was built without the feature `cuda`".to_owned(),
        })
    }

    /// Returns the version of the driver.
    ///
    /// # Errors
    /// None: the value cannot exist.
    pub fn driver(&self) -> Result<String, NvmlError> {
        match *self {}
    }

    /// Returns the memory of a device.
    ///
    /// # Errors
    /// None: the value cannot exist.
    pub fn memory(&self, _: u32) -> Result<DeviceMemory, NvmlError> {
        match *self {}
    }
}
