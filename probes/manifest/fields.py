"""What every field of a manifest is made of: strict models, bounded texts, finite numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Text = Annotated[str, Field(max_length=2000)]


class Strict(BaseModel):
    """An unknown key is an error, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Sealed(Strict):
    """What a folder's manifest has whatever it describes: the digest over everything else in it, and who stands behind that."""

    content_digest: Digest
    signature: Text | None = None
