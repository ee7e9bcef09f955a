"""Tiny random models of every supported family, made by transformers, with each family's traps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
import transformers

from halfbyte.formats import Format, Weight, get_format
from halfbyte.models import build_spec
from halfbyte.models.spec import ModelSpec
from halfbyte.plan import Batch, Plan, make_plan

VOCABULARY = 97
_LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def _longrope(pairs: int) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1 + 0.05 * i for i in range(pairs)],
        "long_factor": [1.5 + 0.4 * i for i in range(pairs)],
    }


def _sizes(hidden: int, intermediate: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY, "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": 2,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "attn_implementation": "eager", **more,
    }  # fmt: skip


def _phi3(**sizes: Any) -> Any:
    return transformers.Phi3ForCausalLM(transformers.Phi3Config(**sizes))


def _llama(**sizes: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))


def _mistral(**sizes: Any) -> Any:
    return transformers.MistralForCausalLM(transformers.MistralConfig(**sizes))


def _qwen2(**sizes: Any) -> Any:
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes))


def _made(family: str, **sizes: Any) -> Any:
    """A model of a family that transformers names so."""
    config = getattr(transformers, f"{family}Config")(**sizes)
    return getattr(transformers, f"{family}ForCausalLM")(config)


def _mistral3(**sizes: Any) -> Any:
    attention = sizes.pop("attn_implementation")
    vision = {
        "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14, "head_dim": 8,
    }  # fmt: skip
    config = transformers.Mistral3Config(
        text_config={"model_type": "ministral3", **sizes}, vision_config=vision, image_token_index=90,
        attn_implementation=attention, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.Mistral3ForConditionalGeneration(config)


_YARN = {
    "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16,
    "beta_fast": 4.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip


def _gemma3(**sizes: Any) -> Any:
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**sizes))


def _gemma4(**sizes: Any) -> Any:
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 50_000.0},
    }
    config = transformers.Gemma4TextConfig(**sizes, rope_parameters=rope, vocab_size_per_layer_input=VOCABULARY)
    return transformers.Gemma4ForCausalLM(config)


def _gemma4_with_towers(**sizes: Any) -> Any:
    attention = sizes.pop("attn_implementation")
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 8, "patch_size": 4, "position_embedding_size": 16,
    }  # fmt: skip
    config = transformers.Gemma4Config(
        text_config={**sizes, "vocab_size_per_layer_input": VOCABULARY}, vision_config=vision, audio_config=None,
        attn_implementation=attention, boi_token_id=90, eoi_token_id=91, image_token_id=92, boa_token_id=93,
        eoa_token_index=94, audio_token_id=95,
    )  # fmt: skip
    return transformers.Gemma4ForConditionalGeneration(config)


def _qwen3_5(**sizes: Any) -> Any:
    return transformers.Qwen3_5ForCausalLM(transformers.Qwen3_5TextConfig(**sizes))


def _qwen3_5_with_vision(**sizes: Any) -> Any:
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 2, "out_hidden_size": sizes["hidden_size"],
        "num_position_embeddings": 16,
    }  # fmt: skip
    attention = sizes.pop("attn_implementation")
    config = transformers.Qwen3_5Config(
        text_config=sizes, vision_config=vision, attn_implementation=attention, eos_token_id=2, bos_token_id=1,
        image_token_id=90, video_token_id=91, vision_start_token_id=92, vision_end_token_id=93,
        tie_word_embeddings=sizes["tie_word_embeddings"],
    )  # fmt: skip
    return transformers.Qwen3_5ForConditionalGeneration(config)


def _lfm2(**sizes: Any) -> Any:
    return transformers.Lfm2ForCausalLM(transformers.Lfm2Config(**sizes))


def _gemma3_with_vision(**sizes: Any) -> Any:
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    attention = sizes.pop("attn_implementation")
    config = transformers.Gemma3Config(
        text_config=sizes, vision_config=vision, mm_tokens_per_image=4, attn_implementation=attention,
        eos_token_id=2, bos_token_id=1, image_token_index=90, boi_token_index=91, eoi_token_index=92,
    )  # fmt: skip
    return transformers.Gemma3ForConditionalGeneration(config)


FAMILIES: dict[str, Callable[[], Any]] = {
    "phi-3.5-mini": lambda: _phi3(
        **_sizes(72, 88, 3, 3, max_position_embeddings=128, original_max_position_embeddings=24,
                 rope_parameters=_longrope(12))
    ),
    "phi-4-mini": lambda: _phi3(
        **_sizes(96, 120, 6, 2, max_position_embeddings=128, original_max_position_embeddings=24,
                 tie_word_embeddings=True,
                 rope_parameters={**_longrope(6), "partial_rotary_factor": 0.75})
    ),
    "phi-4": lambda: _phi3(**_sizes(80, 136, 5, 5, max_position_embeddings=128, rope_theta=250_000.0)),
    "llama-3.2-1b": lambda: _llama(
        **_sizes(64, 100, 8, 2, max_position_embeddings=128, tie_word_embeddings=True,
                 rope_parameters={**_LLAMA3, "factor": 32.0, "rope_theta": 500_000.0})
    ),
    "llama-3.2-3b": lambda: _llama(
        **_sizes(96, 104, 6, 2, head_dim=32, max_position_embeddings=128, tie_word_embeddings=True,
                 rope_parameters={**_LLAMA3, "factor": 32.0, "rope_theta": 500_000.0})
    ),
    "llama-3.1-8b": lambda: _llama(
        **_sizes(64, 56, 4, 1, max_position_embeddings=128,
                 rope_parameters={**_LLAMA3, "factor": 8.0, "rope_theta": 500_000.0})
    ),
    "mistral-7b-v0.3": lambda: _mistral(
        **_sizes(64, 72, 4, 2, max_position_embeddings=128, sliding_window=None, rope_theta=1_000_000.0)
    ),
    "mistral-7b-v0.1": lambda: _mistral(**_sizes(64, 72, 4, 2, max_position_embeddings=128, sliding_window=17)),
    "qwen-2.5": lambda: _qwen2(
        **_sizes(72, 88, 6, 2, num_hidden_layers=3, max_position_embeddings=128, rope_theta=1_000_000.0,
                 tie_word_embeddings=True)
    ),
    "qwen-2-windows": lambda: _qwen2(
        **_sizes(60, 92, 5, 5, num_hidden_layers=3, max_position_embeddings=128, use_sliding_window=True,
                 sliding_window=13, max_window_layers=1)
    ),
    "qwen-3": lambda: _made(
        "Qwen3", **_sizes(72, 88, 6, 2, num_hidden_layers=3, head_dim=20, max_position_embeddings=128, rope_theta=1e6)
    ),
    "qwen-3-windows": lambda: _made(
        "Qwen3", **_sizes(60, 92, 5, 5, num_hidden_layers=3, head_dim=16, max_position_embeddings=128,
                          use_sliding_window=True, sliding_window=13, max_window_layers=1, attention_bias=True,
                          tie_word_embeddings=True)
    ),
    "smollm-3": lambda: _made(
        "SmolLM3", **_sizes(64, 100, 8, 2, num_hidden_layers=5, max_position_embeddings=128, rope_theta=5e6)
    ),
    "smollm-3-windows": lambda: _made(
        "SmolLM3", **_sizes(72, 88, 6, 3, num_hidden_layers=4, max_position_embeddings=128, use_sliding_window=True,
                            sliding_window=13, no_rope_layers=[1, 0, 1, 1], attention_bias=True, mlp_bias=True,
                            tie_word_embeddings=False)
    ),
    "olmo-2": lambda: _made("Olmo2", **_sizes(72, 88, 6, 2, num_hidden_layers=3, max_position_embeddings=128)),
    "olmo-3": lambda: _made(
        "Olmo3", **_sizes(60, 92, 5, 5, num_hidden_layers=5, max_position_embeddings=64, sliding_window=13,
                          rope_scaling={**_YARN, "rope_theta": 500_000.0})
    ),
    "granite-3": lambda: _made(
        "Granite", **_sizes(72, 88, 6, 2, num_hidden_layers=3, max_position_embeddings=128, embedding_multiplier=3.0,
                            residual_multiplier=0.6, attention_multiplier=0.0625, logits_scaling=0.5,
                            rope_theta=10_000_000.0, tie_word_embeddings=True)
    ),
    "gemma-2": lambda: _made(
        "Gemma2", **_sizes(72, 92, 4, 2, num_hidden_layers=3, head_dim=20, max_position_embeddings=128,
                           sliding_window=9, query_pre_attn_scalar=20, attn_logit_softcapping=1.5,
                           final_logit_softcapping=3.0)
    ),
    "gemma-2-scaled": lambda: _made(
        "Gemma2", **_sizes(40, 52, 2, 1, head_dim=24, max_position_embeddings=128, sliding_window=15,
                           query_pre_attn_scalar=9, attn_logit_softcapping=None, final_logit_softcapping=None,
                           layer_types=["full_attention", "sliding_attention"])
    ),
    "ministral-3": lambda: _made(
        "Ministral3", **_sizes(72, 88, 6, 2, num_hidden_layers=3, head_dim=16, max_position_embeddings=128,
                               rope_parameters={**_YARN, "llama_4_scaling_beta": 0.4})
    ),
    "mistral-3": lambda: _mistral3(
        **_sizes(60, 92, 5, 5, head_dim=20, max_position_embeddings=64, sliding_window=None,
                 rope_parameters={**_YARN, "mscale_all_dim": 0.5, "llama_4_scaling_beta": 0.1})
    ),
    "llama-biased": lambda: _llama(
        **_sizes(64, 72, 4, 2, max_position_embeddings=128, attention_bias=True, mlp_bias=True)
    ),
    "gemma-3-1b": lambda: _gemma3(
        **_sizes(72, 92, 4, 1, num_hidden_layers=7, head_dim=20, max_position_embeddings=128, sliding_window=19,
                 query_pre_attn_scalar=24)
    ),
    "gemma-3-softcap": lambda: _gemma3(
        **_sizes(40, 52, 2, 2, head_dim=16, max_position_embeddings=128, sliding_window=8, query_pre_attn_scalar=9,
                 layer_types=["full_attention", "sliding_attention"], final_logit_softcapping=3.0)
    ),
    "gemma-3-4b": lambda: _gemma3_with_vision(
        **_sizes(64, 92, 4, 2, num_hidden_layers=6, head_dim=32, max_position_embeddings=128, sliding_window=16,
                 rope_scaling={"rope_type": "linear", "factor": 8.0})
    ),
    "gemma-4-e2b": lambda: _gemma4(
        **_sizes(72, 60, 4, 1, num_hidden_layers=7, head_dim=20, global_head_dim=24, max_position_embeddings=128,
                 sliding_window=19, hidden_size_per_layer_input=12, num_kv_shared_layers=3, use_double_wide_mlp=True,
                 final_logit_softcapping=9.0, rms_norm_eps=1e-3,
                 layer_types=["sliding_attention", "full_attention"] * 3 + ["full_attention"])
    ),
    "gemma-4-12b": lambda: _gemma4(
        **_sizes(64, 100, 4, 2, num_hidden_layers=3, head_dim=16, global_head_dim=32, max_position_embeddings=128,
                 sliding_window=8, hidden_size_per_layer_input=0, attention_k_eq_v=True, num_global_key_value_heads=1,
                 final_logit_softcapping=12.0,
                 layer_types=["sliding_attention", "sliding_attention", "full_attention"])
    ),
    "gemma-4": lambda: _gemma4_with_towers(
        **_sizes(64, 72, 2, 1, num_hidden_layers=4, head_dim=32, global_head_dim=64, max_position_embeddings=128,
                 sliding_window=16, hidden_size_per_layer_input=8, num_kv_shared_layers=2,
                 layer_types=["sliding_attention", "full_attention"] * 2)
    ),
    "lfm-2": lambda: _lfm2(
        **_sizes(72, 130, 6, 2, num_hidden_layers=5, max_position_embeddings=128, tie_word_embeddings=True,
                 conv_L_cache=3, block_multiple_of=8, block_ffn_dim_multiplier=1.1,
                 layer_types=["conv", "conv", "full_attention", "conv", "full_attention"])
    ),
    "lfm-2-four-inputs": lambda: _lfm2(
        **_sizes(60, 52, 5, 5, num_hidden_layers=3, max_position_embeddings=128, conv_L_cache=4,
                 block_auto_adjust_ff_dim=False, tie_word_embeddings=False, full_attn_idxs=[1])
    ),
    "qwen-3.5-text": lambda: _qwen3_5(
        **_sizes(72, 88, 6, 2, num_hidden_layers=4, head_dim=20, max_position_embeddings=128, tie_word_embeddings=False,
                 linear_conv_kernel_dim=4, linear_key_head_dim=12, linear_value_head_dim=10, linear_num_key_heads=3,
                 linear_num_value_heads=6, rms_norm_eps=1e-3,
                 rope_parameters={"rope_theta": 10_000.0, "partial_rotary_factor": 0.3, "mrope_section": [1, 1, 1],
                                  "rope_type": "default"})
    ),
    "qwen-3.5-equal-heads": lambda: _qwen3_5(
        **_sizes(64, 96, 4, 2, num_hidden_layers=4, head_dim=32, max_position_embeddings=128, tie_word_embeddings=False,
                 linear_conv_kernel_dim=4, linear_key_head_dim=32, linear_value_head_dim=32, linear_num_key_heads=2,
                 linear_num_value_heads=4, rms_norm_eps=1e-3)
    ),
    "qwen-3.5": lambda: _qwen3_5_with_vision(
        **_sizes(64, 96, 4, 1, num_hidden_layers=3, head_dim=32, max_position_embeddings=128, tie_word_embeddings=True,
                 linear_conv_kernel_dim=3, linear_key_head_dim=16, linear_value_head_dim=33, linear_num_key_heads=2,
                 linear_num_value_heads=2, rms_norm_eps=1e-3,
                 layer_types=["linear_attention", "full_attention", "linear_attention"])
    ),
}  # fmt: skip


CONFIGURED = {
    "qwen-2-windows", "qwen-3-windows", "smollm-3-windows", "gemma-2-scaled", "mistral-3", "llama-biased", "olmo-3",
    "gemma-4",
}  # fmt: skip
"""Those whose arithmetic, step by step, is that of others: what their configuration means is theirs alone."""

KINDS = [family for family in FAMILIES if family not in CONFIGURED]
"""A family for each kind of arithmetic: for what takes long."""

LAYERWISE = sorted(set(KINDS) - {"gemma-4-e2b"})
"""Those whose layers read nothing beside the residual stream."""


@dataclass(frozen=True)
class Tiny:
    """A model of transformers and the same weights as Halfbyte sees them."""

    model: Any
    config: dict[str, Any]
    tensors: dict[str, np.ndarray]
    weight_format: str = "f32"

    @property
    def spec(self) -> ModelSpec:
        """The spec, from the configuration as transformers saves it."""
        return build_spec(self.config, {}, self.tensors)

    def format(self, name: str) -> Format:
        """The format of a tensor: vectors stay float32."""
        return get_format(self.weight_format if self.tensors[name].ndim == 2 else "f32")

    def weight(self, name: str) -> Weight:
        """The `WeightSource` protocol."""
        stored = self.format(name)
        return Weight(stored, self.tensors[name].shape, stored.encode(self.tensors[name]))

    def release(self, name: str) -> None:
        """Nothing is mapped here."""

    def plan(self, **capacities: Any) -> Plan:
        """A plan of this model with a float32 cache unless told otherwise."""
        return make_plan(self.spec, self.format, **{"kv_dtype": "f32", "rows": 64, "tokens": 64, **capacities})

    def logits(self, ids: list[int]) -> np.ndarray:
        """What transformers gives for every position of a full pass."""
        with torch.no_grad():
            return np.asarray(self.model(torch.tensor([ids])).logits[0])

    def hidden(self, ids: list[int]) -> np.ndarray:
        """What transformers has before its output matrix, for every position of a full pass."""
        with torch.no_grad():
            return np.asarray(self.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0])


@cache
def tiny(family: str) -> Tiny:
    """The tiny model of a family, its weights random enough that every part of it shows in the logits."""
    torch.manual_seed(7)
    model = FAMILIES[family]().eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.copy_(
                    torch.randn_like(parameter) * (parameter.shape[-1] ** -0.5) * (2 if "embed" in name else 1)
                )
            if "gemma-4" in family and name.endswith("q_norm.weight"):
                parameter.mul_(0.25)  # scores are not scaled, and of random keys so large that one would take all
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.copy_(0.6 + 0.5 * torch.rand_like(buffer))
    tied = model.config.tie_word_embeddings if family not in ("gemma-3-4b", "gemma-4") else True
    tensors = {n: t.numpy() for n, t in model.state_dict().items() if not (tied and n.endswith("lm_head.weight"))}
    return Tiny(model, model.config.to_dict(), tensors)


def feed(executor: Any, ids: list[int], *, start: int = 0, rope_set: int = 0, sequence: int = 0) -> np.ndarray:
    """Run `ids` as positions `start`… of one sequence; the logits of each."""
    return executor.run(batch_of(executor.plan, ids, start, rope_set, sequence)).copy()


def feed_hidden(executor: Any, ids: list[int], *, start: int = 0, rope_set: int = 0) -> np.ndarray:
    """Run `ids` as positions `start`… of one sequence; the hidden states of each, and no logits."""
    batch = replace(batch_of(executor.plan, ids, start, rope_set), hidden=True, logit_rows=np.empty(0, np.int32))
    pending = executor.submit(batch, [])
    assert pending.tokens() == [[]]
    return pending.hidden().copy()


def batch_of(
    plan: Plan, ids: list[int], start: int = 0, rope_set: int = 0, sequence: int = 0, adapter: int | None = None
) -> Batch:
    """`ids` as positions `start`… of one sequence, whose blocks are its own share of each pool, in order."""
    n = len(ids)
    return Batch(
        token_ids=np.array(ids, np.int32),
        positions=np.arange(start, start + n, dtype=np.int32),
        sequences=np.full(n, sequence, np.int32),
        rope_sets=np.full(n, rope_set, np.int32),
        block_tables=plan.own_tables(),
        logit_rows=np.arange(n, dtype=np.int32),
        adapters=None if adapter is None else np.full(n, adapter, np.int32),
    )
