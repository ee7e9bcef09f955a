"""Keys of `config.json` that change nothing in the logits of a text, whatever the family."""

from __future__ import annotations

KEYS = frozenset(
    {
        # Where it comes from and what wrote it.
        "architectures", "auto_map", "finetuning_task", "language", "license", "model_name", "model_type",
        "name_or_path", "tags", "task_specific_params", "tokenizer_class", "transformers.js_config",
        "transformers_version",
        # How numbers are stored; `halfbyte.checkpoint.open` reads the second line.
        "dtype", "torch_dtype", "use_bfloat16",
        "compression_config", "quantization", "quantization_config",
        # Special tokens, which only name ids.
        "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "cls_token_id", "decoder_start_token_id",
        "eos_token_id", "forced_bos_token_id", "forced_eos_token_id", "mask_token_id", "pad_token_id", "prefix",
        "sep_token_id", "suppress_tokens", "unk_token_id",
        # Training.
        "attention_dropout", "attention_probs_dropout_prob", "classifier_dropout", "embd_pdrop", "hidden_dropout",
        "hidden_dropout_prob", "initializer_range", "output_router_logits", "pretraining_tp", "resid_pdrop",
        # How a program runs it and what it returns.
        "attn_implementation", "cache_implementation", "chunk_size_feed_forward", "gradient_checkpointing",
        "output_attentions", "output_hidden_states", "output_scores", "remove_invalid_values", "return_dict",
        "return_dict_in_generate", "tf_legacy_loss", "torchscript", "use_cache", "use_flash_attn",
        "use_flash_attention_2",
        # Classifiers, whose head Halfbyte does not run.
        "id2label", "label2id", "num_labels", "problem_type",
        # Sampling, which belongs in generation_config.json.
        "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty", "length_penalty", "max_length", "max_new_tokens", "min_length",
        "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "repetition_penalty",
        "temperature", "top_k", "top_p", "typical_p",
        # What lengths it was made or trained for.
        "max_seq_len", "max_sequence_length", "model_max_length", "seq_length",
    }
)  # fmt: skip

PREFIXES = ("_", "unsloth")
""""_name_or_path" and the like; notes of Unsloth."""
