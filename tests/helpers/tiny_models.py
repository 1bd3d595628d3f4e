"""Options of tiny models, one of each kind."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
MELS = 5
LANGUAGES = ["hi", "ur", "pa"]
VOCABULARY = 7
ENCODERS = {
    "lstm": {"num_layers": 3, "hidden_size": 8, "output_size": 6, "reduction_layer": 2},
    "conformer": {
        "output_size": 6,
        "attention_heads": 2,
        "linear_units": 8,
        "num_blocks": 2,
        "cnn_module_kernel": 3,
        "input_layer": "conv2d2",
    },
    "transformer": {
        "output_size": 6,
        "attention_heads": 2,
        "linear_units": 8,
        "num_blocks": 2,
        "input_layer": "conv2d2",
    },
    "e_branchformer": {
        "output_size": 6,
        "attention_heads": 2,
        "linear_units": 8,
        "num_blocks": 2,
        "use_ffn": True,
        "cgmlp_linear_units": 8,
        "cgmlp_conv_kernel": 3,
        "input_layer": "conv2d2",
    },
}
TAGS = [VOCABULARY, VOCABULARY + 1]  # of two target languages, after the labels; then <sos/eos>
ST_VOCABULARY = VOCABULARY + 3
ST_ENCODERS = {
    name: {key: value for key, value in ENCODERS[name].items() if key != "input_layer"}
    for name in ("transformer", "conformer", "e_branchformer")
}
