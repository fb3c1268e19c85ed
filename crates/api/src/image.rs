//! What Dhow writes into the configuration of the images it builds, and reads back when it runs them.
//!
//! The labels are the contract between `build`, which writes them, and `node` and `runtime`, which obey them.

/// Image labels.
pub mod label {
    /// `python` or `node`: which adapter runs the code. Absent on images that Dhow did not build.
    pub const RUNTIME: &str = "dev.dhow.runtime";
    /// The handler as the adapter understands it, such as `main.handle`.
    pub const HANDLER: &str = "dev.dhow.handler";
    /// The version of the contract between the image and the adapter.
    pub const CONTRACT: &str = "dev.dhow.contract";
    /// On a base image: the path of its interpreter, where it is not the first on the image's PATH.
    pub const INTERPRETER: &str = "dev.dhow.interpreter";
}

/// The contract version written today.
pub const CONTRACT: &str = "1";
/// Where the code lies in the image, and the working directory.
pub const CODE_DIR: &str = "/app";
/// Where installed dependencies lie in the image: `/deps/python` or `/deps/node_modules`.
pub const DEPS_DIR: &str = "/deps";
/// Where the adapters lie in an image that carries them, which those for a cluster do.
pub const ADAPTER_DIR: &str = "/dhow";
/// Who runs a function on a cluster: nobody that an image knows.
pub const CLUSTER_USER: &str = "65532:65532";
