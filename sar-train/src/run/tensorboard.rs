//! TensorBoard events.
//!
//! The framing and its checksums come from the `tensorboard-rs` crate. The messages, of which four
//! are needed, are encoded here, because that crate's own writer panics if the disk is full.

use super::RunError;
use crate::data::grid::encode_png;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use tensorboard_rs::record_writer::RecordWriter;

/// Writes scalars and pictures for TensorBoard.
pub struct TensorBoard {
    path: PathBuf,
    writer: RecordWriter<File>,
}

impl TensorBoard {
    /// Opens a new event file in `folder` for a run that has reached `step`; TensorBoard discards
    /// the events of earlier files about later steps.
    ///
    /// # Errors
    /// [`RunError::Write`].
    pub fn open(folder: &Path, step: u64) -> Result<Self, RunError> {
        fs::create_dir_all(folder).map_err(RunError::write(folder))?;
        // Files are read in the order of their names; the number sorts a resumed run's file after
        // earlier ones.
        let earlier = fs::read_dir(folder).map_err(RunError::read(folder))?.count();
        let name = format!("events.out.tfevents.{:010}.{earlier:04}.sar", now() as u64);
        let path = folder.join(name);
        let file = File::create_new(&path).map_err(RunError::write(&path))?;
        let mut board = Self { path, writer: RecordWriter::new(file) };
        board.event(0, |event| event.bytes(3, b"brain.Event:2"))?;
        if step > 0 || earlier > 0 {
            // SessionLog { status: START }
            board.event(step + 1, |event| event.message(7, |log| log.varint(1, 1)))?;
        }
        Ok(board)
    }

    /// Adds the point (`step`, `value`) to the curve `tag`.
    ///
    /// # Errors
    /// [`RunError::Write`].
    pub fn scalar(&mut self, tag: &str, step: u64, value: f64) -> Result<(), RunError> {
        self.value(tag, step, |v| v.float(2, value as f32))
    }

    /// Adds a picture.
    ///
    /// # Errors
    /// [`RunError::Write`].
    pub fn image(&mut self, tag: &str, step: u64, image: &image::RgbImage) -> Result<(), RunError> {
        let content = encode_png(image).map_err(std::io::Error::other);
        let content = content.map_err(RunError::write(&self.path))?;
        self.value(tag, step, |v| {
            v.message(4, |i| {
                i.varint(1, u64::from(image.height()));
                i.varint(2, u64::from(image.width()));
                i.varint(3, 3);
                i.bytes(4, &content);
            });
        })
    }

    fn value(
        &mut self,
        tag: &str,
        step: u64,
        content: impl FnOnce(&mut Message),
    ) -> Result<(), RunError> {
        self.event(step, |event| {
            event.message(5, |summary| {
                summary.message(1, |value| {
                    value.bytes(1, tag.as_bytes());
                    content(value);
                });
            });
        })
    }

    fn event(&mut self, step: u64, content: impl FnOnce(&mut Message)) -> Result<(), RunError> {
        let mut event = Message::default();
        event.double(1, now());
        event.varint(2, step);
        content(&mut event);
        self.writer.write(&event.0).map_err(RunError::write(&self.path))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64())
}

/// A protocol buffer message under construction; the methods take field numbers.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn number(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.0.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.0.push(n as u8);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.number(field << 3);
        self.number(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.number(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.number(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.number(field << 3 | 2);
        self.number(value.len() as u64);
        self.0.extend(value);
    }

    fn message(&mut self, field: u64, content: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        content(&mut inner);
        self.bytes(field, &inner.0);
    }
}
