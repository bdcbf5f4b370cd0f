"""What a frozen stem makes of the records, computed once a site and cached."""

import numpy as np
import torch
from numpy.typing import NDArray

from fednas.privacy.ledger import Permit
from fednas.privacy.streams import StreamedRecords
from fednas.space.layers import Network
from fednas.supernet.chunks import chunks, steady_rows


def stem_features(network: Network, records: StreamedRecords, permit: Permit) -> StreamedRecords:
    """Records as the network's trunk sees them.

    A stem has no parameters and treats every record by itself, so its output may be cached for the life of
    the records and keeps their streams. Where a record's place among others was seen to change its bits, the
    records pass one at a time.
    """
    if network.stem_key == "identity":
        return records

    def transform(x: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            size = steady_rows(lambda rows, _: [network.stem(rows)], records.record_shape, len(x))
            labels = torch.zeros(len(x), dtype=torch.int64)
            parts = [
                network.stem(rows)[:number] for rows, _, number in chunks(torch.from_numpy(x), labels, size)
            ]
        features: NDArray[np.float32] = torch.cat(parts).numpy()
        return features

    return records.derive(permit, network.stem_key, transform)
