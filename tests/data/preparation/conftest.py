"""Tiny models with random weights, built from configurations, saved, and opened as real ones are. What they say means
nothing: they prove shapes, batching, files and errors."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

transformers = pytest.importorskip("transformers")

WORDS = "chair table lamp red a this describe in one sentence its shape and color be concise use only single".split()


@pytest.fixture(scope="session")
def random_tiny_detector(tmp_path_factory):
    """Folder of a Grounding DINO with random weights."""
    torch.manual_seed(0)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", *WORDS]
    tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)})
    swin = transformers.SwinConfig(
        image_size=64, patch_size=4, embed_dim=16, depths=[1] * 4, num_heads=[1, 2, 2, 2], window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    bert = transformers.BertConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    config = transformers.GroundingDinoConfig(
        backbone_config=swin, text_config=bert, d_model=32, encoder_layers=1, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=5,
        max_text_len=32,
    )  # fmt: skip
    images = transformers.GroundingDinoImageProcessor(size={"shortest_edge": 128, "longest_edge": 128})
    folder = tmp_path_factory.mktemp("random-tiny") / "grounding-dino-tiny"
    transformers.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    transformers.GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def random_tiny_segmenter(tmp_path_factory):
    """Folder of a Segment Anything with random weights."""
    torch.manual_seed(0)
    common = dict(hidden_size=16, image_size=64)
    config = transformers.SamConfig(
        vision_config=dict(
            hidden_size=32, output_channels=16, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=8,
            mlp_dim=32, window_size=4, global_attn_indexes=[0], num_pos_feats=8,
        ),
        prompt_encoder_config=dict(**common, patch_size=8, mask_input_channels=8),
        mask_decoder_config=dict(
            hidden_size=16, mlp_dim=16, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=16,
        ),
    )  # fmt: skip
    images = transformers.SamImageProcessor(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}, mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("random-tiny") / "sam-vit-huge"
    transformers.SamModel(config).save_pretrained(folder)
    transformers.SamProcessor(images).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def random_tiny_captioner(tmp_path_factory):
    """Folder of a BLIP-2 with random weights."""
    torch.manual_seed(0)
    words = ["<pad>", "</s>", "<unk>", ".", ",", ":", *WORDS, "Question", "Answer", "Describe", "Be"]
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", bos_token="</s>", unk_token="<unk>"
    )
    images = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    processor = transformers.Blip2Processor(images, tokenizer, num_query_tokens=4)
    image_token = processor.tokenizer.convert_tokens_to_ids("<image>")
    config = transformers.Blip2Config(
        vision_config=dict(
            hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32,
            initializer_range=0.5,
            patch_size=8,
        ),
        qformer_config=dict(
            initializer_range=0.5,
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=40,
            encoder_hidden_size=32,
        ),
        text_config=transformers.OPTConfig(
            vocab_size=image_token + 1, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, ffn_dim=32,
            max_position_embeddings=256, word_embed_proj_dim=32, init_std=0.5,
            pad_token_id=0, bos_token_id=1, eos_token_id=1,
        ).to_dict(),
        num_query_tokens=4,
        image_token_index=image_token,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("random-tiny") / "blip2-opt-2.7b"
    transformers.Blip2ForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


class _Matting(torch.nn.Module):
    """The signature of Robust Video Matting: alpha is the red channel; the first state is the sum of all frames."""

    def forward(
        self,
        frame: torch.Tensor,
        r1: torch.Tensor | None,
        r2: torch.Tensor | None,
        r3: torch.Tensor | None,
        r4: torch.Tensor | None,
        downsample_ratio: float = 1.0,
    ) -> list[torch.Tensor]:
        total = frame if r1 is None else r1 + frame
        alpha = (0.5 * frame[:, :1] + 0.5 * total[:, 1:2]) * downsample_ratio
        return [frame, alpha, total, frame, frame, frame]


@pytest.fixture(scope="session")
def scripted_tiny_matting(tmp_path_factory):
    """A TorchScript file that is called as the released ones are."""
    file = tmp_path_factory.mktemp("scripted-tiny") / "rvm_mobilenetv3_fp32.torchscript"
    torch.jit.script(_Matting()).save(str(file))
    return file
