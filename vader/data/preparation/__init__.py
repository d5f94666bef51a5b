"""Tools that make what a data set lacks: masks and captions, by pretrained models (C.1, C.2).

    vader prepare masks FOLDER --class chair       Grounding DINO finds the thing, Segment Anything cuts it out
    vader prepare masks FOLDER --people            Robust Video Matting, frame after frame
    vader prepare captions FOLDER --hint chair     one sentence about each object's first view

The results are files beside the data, where its reader looks for them, so the models run once. A mask that comes with
the data always wins: none is made for its picture. `BackgroundRemover` fits `formats.Options.masker`, and
`robust_video_matting` is a `formats.videos.Masker`, for callers that want no files.

`models.MODELS` names every model, with revision and licence, and `models` says where they come from. None is ever
replaced by another. Text embeddings are `vader.diffusion.text`.
"""
