mod sets;
mod topics;
