mod cluster;
mod histories;
mod internal;
mod sets;
mod topics;
