//! What container engines put into every container: masked and read-only paths, mounts, devices.
