//! Structure of the network: 94 convolutions, in the published order and under the published names.

use crate::params::Layout;
use sar_math::backend::Slot;

/// Side of every pool, and of the convolutions that shrink a map.
pub(super) const WINDOW: usize = 3;

/// The convolution that spatial features are taken from: `mixed_6/conv` of the published graph.
pub(super) const SPATIAL: &str = "Mixed_6d.branch1x1";

/// A part of the network, from one map to another.
#[derive(Clone, Debug)]
pub(super) enum Node {
    /// A convolution with its batch norm and ReLU.
    Conv(Conv),
    /// The maximum of each window.
    Max {
        /// Step between windows.
        stride: usize,
        /// Border, which counts as smaller than every value.
        pad: usize,
    },
    /// The mean of each window of stride 1, over its positions inside the map.
    Mean,
    /// Nodes applied one after the other.
    Chain(Vec<Node>),
    /// Nodes applied to the same map, their output channels concatenated.
    Join(Vec<Node>),
}

/// A convolution; its batch norm is folded into weight and bias.
#[derive(Clone, Debug)]
pub(super) struct Conv {
    pub(super) name: String,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Rows and columns of the kernel.
    pub(super) kernel: (usize, usize),
    pub(super) stride: usize,
    /// Zeros around the map, in rows and columns.
    pub(super) pad: (usize, usize),
    /// Folded weight `[outputs, kernel rows, kernel columns, inputs]` and bias `[outputs]`.
    pub(super) weight: Slot,
    pub(super) bias: Slot,
}

impl Conv {
    /// Number of products summed for one output.
    pub(super) fn terms(&self) -> usize {
        self.inputs * self.kernel.0 * self.kernel.1
    }
}

/// The whole network.
#[derive(Clone, Debug)]
pub(super) struct Network {
    pub(super) root: Node,
    /// The tensors of the published file.
    pub(super) published: Layout,
    /// Folded weights and biases, and the last layer's weight.
    pub(super) folded: Layout,
    /// The last layer's weight, `[classes, features]`.
    pub(super) classes: Slot,
    /// Number of channels of the last map.
    pub(super) features: usize,
    /// Number of outputs of the last layer.
    pub(super) class_count: usize,
}

impl Network {
    /// Lays out the network with all channels except the image's divided by `narrowed`: 1 as
    /// published, at most 16.
    pub(super) fn new(narrowed: usize) -> Self {
        let mut of = Builder { narrowed, published: Layout::new(), folded: Layout::new() };
        let root = Node::Chain(of.all());
        let (features, class_count) = (of.width(2048), of.width(1008));
        of.published.push("fc.weight", &[class_count, features]);
        of.published.push("fc.bias", &[class_count]);
        let classes = of.folded.push("fc.weight", &[class_count, features]);
        let Builder { published, folded, .. } = of;
        Self { root, published, folded, classes, features, class_count }
    }
}

struct Builder {
    narrowed: usize,
    published: Layout,
    folded: Layout,
}

impl Builder {
    fn width(&self, channels: usize) -> usize {
        channels / self.narrowed
    }

    fn all(&mut self) -> Vec<Node> {
        let halved = Node::Max { stride: 2, pad: 0 };
        vec![
            self.shrinking("Conv2d_1a_3x3", 3, 32, 2),
            self.shrinking("Conv2d_2a_3x3", 32, 32, 1),
            self.keeping("Conv2d_2b_3x3", 32, 64, (3, 3)),
            halved.clone(),
            self.keeping("Conv2d_3b_1x1", 64, 80, (1, 1)),
            self.shrinking("Conv2d_4a_3x3", 80, 192, 1),
            halved,
            self.fives("Mixed_5b", 192, 32),
            self.fives("Mixed_5c", 256, 64),
            self.fives("Mixed_5d", 288, 64),
            self.halve_35("Mixed_6a", 288),
            self.sevens("Mixed_6b", 768, 128),
            self.sevens("Mixed_6c", 768, 160),
            self.sevens("Mixed_6d", 768, 160),
            self.sevens("Mixed_6e", 768, 192),
            self.halve_17("Mixed_7a", 768),
            self.forked("Mixed_7b", 1280, Node::Mean),
            // A maximum here, because the published weights were trained that way.
            self.forked("Mixed_7c", 2048, Node::Max { stride: 1, pad: 1 }),
        ]
    }

    /// Branches of 1×1, 5×5 and two 3×3, and a pool: `InceptionA`.
    fn fives(&mut self, name: &str, inputs: usize, pooled: usize) -> Node {
        let of = |branch: &str| format!("{name}.{branch}");
        Node::Join(vec![
            self.keeping(&of("branch1x1"), inputs, 64, (1, 1)),
            Node::Chain(vec![
                self.keeping(&of("branch5x5_1"), inputs, 48, (1, 1)),
                self.keeping(&of("branch5x5_2"), 48, 64, (5, 5)),
            ]),
            Node::Chain(vec![
                self.keeping(&of("branch3x3dbl_1"), inputs, 64, (1, 1)),
                self.keeping(&of("branch3x3dbl_2"), 64, 96, (3, 3)),
                self.keeping(&of("branch3x3dbl_3"), 96, 96, (3, 3)),
            ]),
            self.pooled(&of("branch_pool"), Node::Mean, inputs, pooled),
        ])
    }

    /// From 35×35 to 17×17: `InceptionB`.
    fn halve_35(&mut self, name: &str, inputs: usize) -> Node {
        let of = |branch: &str| format!("{name}.{branch}");
        Node::Join(vec![
            self.shrinking(&of("branch3x3"), inputs, 384, 2),
            Node::Chain(vec![
                self.keeping(&of("branch3x3dbl_1"), inputs, 64, (1, 1)),
                self.keeping(&of("branch3x3dbl_2"), 64, 96, (3, 3)),
                self.shrinking(&of("branch3x3dbl_3"), 96, 96, 2),
            ]),
            Node::Max { stride: 2, pad: 0 },
        ])
    }

    /// 7×7 convolutions split into rows and columns, with `inner` channels between them:
    /// `InceptionC`.
    fn sevens(&mut self, name: &str, inputs: usize, inner: usize) -> Node {
        let of = |branch: &str| format!("{name}.{branch}");
        Node::Join(vec![
            self.keeping(&of("branch1x1"), inputs, 192, (1, 1)),
            Node::Chain(vec![
                self.keeping(&of("branch7x7_1"), inputs, inner, (1, 1)),
                self.keeping(&of("branch7x7_2"), inner, inner, (1, 7)),
                self.keeping(&of("branch7x7_3"), inner, 192, (7, 1)),
            ]),
            Node::Chain(vec![
                self.keeping(&of("branch7x7dbl_1"), inputs, inner, (1, 1)),
                self.keeping(&of("branch7x7dbl_2"), inner, inner, (7, 1)),
                self.keeping(&of("branch7x7dbl_3"), inner, inner, (1, 7)),
                self.keeping(&of("branch7x7dbl_4"), inner, inner, (7, 1)),
                self.keeping(&of("branch7x7dbl_5"), inner, 192, (1, 7)),
            ]),
            self.pooled(&of("branch_pool"), Node::Mean, inputs, 192),
        ])
    }

    /// From 17×17 to 8×8: `InceptionD`.
    fn halve_17(&mut self, name: &str, inputs: usize) -> Node {
        let of = |branch: &str| format!("{name}.{branch}");
        Node::Join(vec![
            Node::Chain(vec![
                self.keeping(&of("branch3x3_1"), inputs, 192, (1, 1)),
                self.shrinking(&of("branch3x3_2"), 192, 320, 2),
            ]),
            Node::Chain(vec![
                self.keeping(&of("branch7x7x3_1"), inputs, 192, (1, 1)),
                self.keeping(&of("branch7x7x3_2"), 192, 192, (1, 7)),
                self.keeping(&of("branch7x7x3_3"), 192, 192, (7, 1)),
                self.shrinking(&of("branch7x7x3_4"), 192, 192, 2),
            ]),
            Node::Max { stride: 2, pad: 0 },
        ])
    }

    /// Branches that end in a row and a column convolution side by side: `InceptionE`.
    fn forked(&mut self, name: &str, inputs: usize, pool: Node) -> Node {
        let of = |branch: &str| format!("{name}.{branch}");
        Node::Join(vec![
            self.keeping(&of("branch1x1"), inputs, 320, (1, 1)),
            Node::Chain(vec![
                self.keeping(&of("branch3x3_1"), inputs, 384, (1, 1)),
                Node::Join(vec![
                    self.keeping(&of("branch3x3_2a"), 384, 384, (1, 3)),
                    self.keeping(&of("branch3x3_2b"), 384, 384, (3, 1)),
                ]),
            ]),
            Node::Chain(vec![
                self.keeping(&of("branch3x3dbl_1"), inputs, 448, (1, 1)),
                self.keeping(&of("branch3x3dbl_2"), 448, 384, (3, 3)),
                Node::Join(vec![
                    self.keeping(&of("branch3x3dbl_3a"), 384, 384, (1, 3)),
                    self.keeping(&of("branch3x3dbl_3b"), 384, 384, (3, 1)),
                ]),
            ]),
            self.pooled(&of("branch_pool"), pool, inputs, 192),
        ])
    }

    fn pooled(&mut self, name: &str, pool: Node, inputs: usize, outputs: usize) -> Node {
        Node::Chain(vec![pool, self.keeping(name, inputs, outputs, (1, 1))])
    }

    /// A convolution that keeps the number of rows and columns.
    fn keeping(
        &mut self,
        name: &str,
        inputs: usize,
        outputs: usize,
        kernel: (usize, usize),
    ) -> Node {
        self.conv(name, (inputs, outputs), kernel, 1, (kernel.0 / 2, kernel.1 / 2))
    }

    /// A convolution of 3×3 without a border.
    fn shrinking(&mut self, name: &str, inputs: usize, outputs: usize, stride: usize) -> Node {
        self.conv(name, (inputs, outputs), (WINDOW, WINDOW), stride, (0, 0))
    }

    fn conv(
        &mut self,
        name: &str,
        (inputs, outputs): (usize, usize),
        kernel: (usize, usize),
        stride: usize,
        pad: (usize, usize),
    ) -> Node {
        // The three colour channels are never reduced.
        let inputs = if inputs == 3 { inputs } else { self.width(inputs) };
        let outputs = self.width(outputs);
        self.published.push(format!("{name}.conv.weight"), &[outputs, inputs, kernel.0, kernel.1]);
        for part in NORM {
            self.published.push(format!("{name}.bn.{part}"), &[outputs]);
        }
        let weight = self.folded.push(name, &[outputs, kernel.0, kernel.1, inputs]);
        let bias = self.folded.push(format!("{name}.bias"), &[outputs]);
        let name = name.to_owned();
        Node::Conv(Conv { name, inputs, outputs, kernel, stride, pad, weight, bias })
    }
}

/// Tensors of a batch norm in the published file.
pub(super) const NORM: [&str; 4] = ["weight", "bias", "running_mean", "running_var"];
