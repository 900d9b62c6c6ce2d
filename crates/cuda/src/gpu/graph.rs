//! Work recorded once and replayed with one call.

use std::sync::Arc;

use lgm_core::Result;

use crate::gpu::api::{CUgraph, Handle, driver::CUgraphExec_st, driver::CUstreamCaptureMode};
use crate::gpu::context::{Context, Stream, driver};

/// Recorded work of the compute stream.
pub struct Graph {
    context: Arc<Context>,
    exec: Handle<CUgraphExec_st>,
    nodes: usize,
}

/// Everything put on the compute stream from now on is recorded, not run.
pub(crate) fn begin(context: &Context) -> Result<()> {
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    driver!(context, cuStreamBeginCapture_v2(context.stream(Stream::Compute), mode))
}

/// What was recorded, as the driver's graph.
pub(crate) fn end(context: &Context) -> Result<CUgraph> {
    let mut graph = std::ptr::null_mut();
    driver!(context, cuStreamEndCapture(context.stream(Stream::Compute), &mut graph))?;
    Ok(graph)
}

/// Forgets a recorded graph.
pub(crate) fn discard(context: &Context, graph: CUgraph) {
    if !graph.is_null() {
        let _ = driver!(context, cuGraphDestroy(graph));
    }
}

impl Graph {
    /// Makes a recorded graph ready to run.
    pub(crate) fn new(context: &Arc<Context>, graph: CUgraph) -> Result<Graph> {
        let mut result = Graph { context: context.clone(), exec: Handle::NULL, nodes: 0 };
        let nodes = &mut result.nodes;
        driver!(context, cuGraphGetNodes(graph, std::ptr::null_mut(), nodes))?;
        let exec = &mut result.exec.0;
        driver!(context, cuGraphInstantiateWithFlags(exec, graph, 0))?;
        // The first launch would otherwise pay for the upload.
        driver!(context, cuGraphUpload(result.exec.0, context.stream(Stream::Compute)))?;
        Ok(result)
    }

    /// Kernels, copies and the like in it.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// Puts all of it on the compute stream.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn replay(&self) -> Result<()> {
        driver!(self.context, cuGraphLaunch(self.exec.0, self.context.stream(Stream::Compute)))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if !self.exec.is_null() {
            let _ = driver!(self.context, cuGraphExecDestroy(self.exec.0));
        }
    }
}
