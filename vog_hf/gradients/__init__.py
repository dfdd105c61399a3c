"""A model: what is differentiated with respect to what, and how. May import `metric`, `runtime` and `errors`.

`input_gradients` is the public function; `input_leaf` finds the input, of an `input_kind` (which has the rule for
padding), and cuts it out of the graph (tokens by `embedding_cut`), `model_inputs` makes the arguments of `forward`
(`decoder_inputs` those of a decoder, `fixed_noise` the masks of autoencoders, `images_beside_texts` the images of each
row). A `task` is the scalar of a row for one kind of head (`class_tasks`, `token_tasks`, `question_answering`,
`segmentation`, `detection` by the `detection_losses` of transformers, `speech_recognition`, `reconstruction`,
`dual_encoders` with both `pair_sides`, `preferences`, `sentence_encoders`); `tasks` is their table, `model_outputs`
finds the logits, `targets` picks task and scalar.
`model_mode` puts a model into evaluation mode for a while and `model_state` puts back whatever a forward pass changes,
by `object_records`, but for `derived_tensors`, which it makes again; `batchnorm_folding` makes a model faster without
changing its function, and `foldable_modules` finds where. `training_passes` observes the passes that train a model,
`observed_passes` computes what they say, many at once, and `row_losses` knows the weight that a training's loss gives
each row.
"""
