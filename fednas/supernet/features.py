"""What a frozen stem makes of the records, computed once a site and cached."""

import numpy as np
import torch
from numpy.typing import NDArray

from fednas.privacy.ledger import Permit
from fednas.privacy.streams import StreamedRecords
from fednas.space.layers import Network


def stem_features(network: Network, records: StreamedRecords, permit: Permit) -> StreamedRecords:
    """Records as the network's trunk sees them.

    A stem has no parameters and treats every record by itself, so its output may be cached for the life of
    the records and keeps their streams.
    """
    if network.stem_key == "identity":
        return records

    def transform(x: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            features: NDArray[np.float32] = network.stem(torch.from_numpy(x)).numpy()
        return features

    return records.derive(permit, network.stem_key, transform)
