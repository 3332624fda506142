//! Weight streaming, which the safe binding does not carry: three calls on the engine itself. Only for graphs with their weights inside (the
//! text encoder above all): a transformer layer's weights are inputs, so they stream through slots of our own and leave nothing to stream here.
