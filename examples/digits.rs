//! What quantization costs a real classifier: accuracy and size of a small digits model, scheme by scheme.
//!
//! From the root of the repository: `cargo run --release --example digits`
//!
//! The model is a perceptron 64-256-256-10, trained by `scripts/train_digits.py` on scikit-learn's digits.
//! Its weights are quantized and de-quantized again, and the images that it never saw are classified with
//! what came back. Biases stay f32, as usual: they are few, and they matter.

use safetensors::SafeTensors;
use std::error::Error;
use wgpu_quant::file::PartBytes;
use wgpu_quant::{Backend, Granularity, LossDetail, Scheme, Spec, Tensor};

/// A fully connected layer: `weight` is row-major `[outputs, inputs]`.
struct Layer {
    weight: Vec<f32>,
    shape: [usize; 2],
    bias: Vec<f32>,
}

impl Layer {
    fn forward(&self, x: &[f32], weight: &[f32]) -> Vec<f32> {
        let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| w * x).sum::<f32>();
        weight.chunks_exact(self.shape[1]).zip(&self.bias).map(|(row, bias)| dot(row) + bias).collect()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let model = std::fs::read("tests/data/digits.safetensors")?;
    let model = SafeTensors::deserialize(&model)?;
    let layers = ["fc1", "fc2", "fc3"].map(|name| read_layer(&model, name));
    let layers = layers.into_iter().collect::<Result<Vec<_>, _>>()?;

    let test = std::fs::read("tests/data/digits_test.safetensors")?;
    let test = SafeTensors::deserialize(&test)?;
    let images = floats(test.tensor("images")?.data());
    let labels = test.tensor("labels")?.data().to_vec();

    let backend = Backend::open("auto")?;
    println!("{} held-out images; quantized by {}, because {}\n", labels.len(), backend.info(), backend.reason());
    println!(
        "{:<18} {:<10} {:>9} {:>14} {:>9} {:>9}",
        "weights", "per", "accuracy", "weight bytes", "of f32", "SQNR dB"
    );

    let weights: Vec<Vec<f32>> = layers.iter().map(|layer| layer.weight.clone()).collect();
    let f32_bytes: usize = weights.iter().map(|weight| size_of_val(&weight[..])).sum();
    let f32_accuracy = accuracy(&layers, &weights, &images, &labels);
    println!("{:<18} {:<10} {:>8.2}% {f32_bytes:>14} {:>9} {:>9}", "f32", "-", 100.0 * f32_accuracy, "1.000", "-");

    for &scheme in Scheme::ALL {
        // One scale for all of a layer's weights, for each of its outputs, for each of its inputs, or for 32 weights.
        let granularities =
            [Granularity::Tensor, Granularity::Channel(0), Granularity::Channel(1), Granularity::Group(32)];
        // A cast has none.
        for &granularity in if scheme.is_cast() { &granularities[..1] } else { &granularities } {
            let spec = Spec::new(scheme).per(granularity).loss(LossDetail::Summary);
            let (mut weights, mut bytes) = (Vec::new(), 0);
            let mut loss = wgpu_quant::LossSums::default();
            for layer in &layers {
                let out = backend.quantize(Tensor::new(&layer.weight, &layer.shape)?, &spec)?;
                bytes += PartBytes::of(&out.tensor).count();
                loss.merge(&out.loss.as_ref().expect("asked for").sums);
                weights.push(backend.dequantize(&out.tensor)?.value);
            }
            println!(
                "{scheme:<18} {granularity:<10} {:>8.2}% {bytes:>14} {:>9.3} {:>9.2}",
                100.0 * accuracy(&layers, &weights, &images, &labels),
                bytes as f64 / f32_bytes as f64,
                loss.summary().sqnr_db.unwrap_or(f64::INFINITY),
            );
        }
    }
    Ok(())
}

/// The share of images whose largest output is their label's.
fn accuracy(layers: &[Layer], weights: &[Vec<f32>], images: &[f32], labels: &[u8]) -> f64 {
    let right = images
        .chunks_exact(layers[0].shape[1])
        .zip(labels)
        .filter(|&(image, &label)| {
            let mut x = image.to_vec();
            for (i, (layer, weight)) in layers.iter().zip(weights).enumerate() {
                x = layer.forward(&x, weight);
                if i + 1 < layers.len() {
                    // ReLU between the layers.
                    x.iter_mut().for_each(|v| *v = v.max(0.0));
                }
            }
            let largest = (0..x.len()).max_by(|&a, &b| x[a].total_cmp(&x[b]));
            largest == Some(label.into())
        })
        .count();
    right as f64 / labels.len() as f64
}

fn read_layer(model: &SafeTensors<'_>, name: &str) -> Result<Layer, Box<dyn Error>> {
    let weight = model.tensor(&format!("{name}.weight"))?;
    let bias = model.tensor(&format!("{name}.bias"))?;
    Ok(Layer { weight: floats(weight.data()), shape: weight.shape().try_into()?, bias: floats(bias.data()) })
}

/// Safetensors holds little-endian bytes.
fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}
