"""The reader's config and its tokenizer: the family's architecture, small."""

import json
from pathlib import Path

import multipatch_jax as mp

TEXT_WIDTH = 128
MARKERS = ["<fake_token_around_image>", "<global-img>", "<image>"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<end_of_utterance>", *MARKERS]
SPECIAL += [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]
SETTINGS = {
    "bos_token": "<|im_start|>",
    "eos_token": "<end_of_utterance>",
    "pad_token": "<|im_end|>",
    "tokenizer_class": "PreTrainedTokenizerFast",
}
READ, COUNT, LARGEST = "Read the numbers.", "How many numbers are there?", "Which number is the largest?"
CHAT_TEMPLATE = (  # SmolVLM's
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
VOCABULARY = 384  # 256 bytes, the special tokens, and pieces of the questions' words


def reader_config() -> mp.ModelConfig:
    """Return the config: tiles of 64 pixels with 16 tokens each, and up to 4 x 4 of them and the global tile."""
    return mp.ModelConfig(
        vision=mp.VisionConfig(
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=3,
            image_size=64,
            patch_size=8,
        ),
        connector=mp.ConnectorConfig(scale_factor=2, text_hidden_size=TEXT_WIDTH),
        tiling=mp.TilingConfig(longest_edge=256, tile_size=64, tokens_per_tile=16),
        text=mp.TextConfig(
            hidden_size=TEXT_WIDTH,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            vocab_size=VOCABULARY,
            max_position_embeddings=2048,
            pad_token_id=SPECIAL.index(SETTINGS["pad_token"]),
            tie_word_embeddings=True,
        ),
        image_token_id=SPECIAL.index("<image>"),
    )


def write_tokenizer(folder: Path) -> None:
    """Write the files of tokenizer and processor: bytes, digits one by one, and pieces of the questions' words."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    turns = [f"User:{question}\nAssistant: \n\n" for question in (READ, COUNT, LARGEST)]
    tokenizer.train_from_iterator(turns * 10, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    settings = {"eos_token_id": SPECIAL.index(SETTINGS["eos_token"]), "max_new_tokens": 64}
    settings["pad_token_id"] = SPECIAL.index(SETTINGS["pad_token"])
    processor = {"processor_class": "Idefics3Processor", "image_seq_len": reader_config().tiling.tokens_per_tile}
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n")
