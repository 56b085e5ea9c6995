package keep

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/ethtool"
)

// txChecksum reports whether the device computes checksums of the packets it
// sends (ethtool -k, tx-checksumming). For a VXLAN device this is just the
// feature tx-checksum-ip-generic.
func txChecksum(dev string) (on bool, err error) {
	value, err := ethtool.Value(dev, unix.ETHTOOL_GTXCSUM, 0)
	return value != 0, err
}

// noTxChecksum does the same as ethtool -K tx off.
func noTxChecksum(dev string) error {
	if _, err := ethtool.Value(dev, unix.ETHTOOL_STXCSUM, 0); err != nil {
		return fmt.Errorf("%w; turn it off with 'ethtool -K %s tx-checksum-ip-generic off'", err, dev)
	}
	return nil
}
