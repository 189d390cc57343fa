//! placeholder: see the module's owner
