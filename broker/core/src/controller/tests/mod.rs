mod cluster;
mod histories;
mod sets;
mod topics;
