package metrics

// dropMeanings explains each reason to an operator, in one line.
var dropMeanings = [NumDrops]string{
	DropMalformed:          "not a well-formed IP packet, or truncated on the way",
	DropUnknownPeer:        "sent by a host that holds no lease",
	DropSpoofedSource:      "inner source is not in the sending peer's subnets",
	DropForeignDestination: "inner destination is not in this node's subnets; the sender may have a stale lease",
	DropNoRoute:            "no peer holds the destination",
	DropTooBig:             "larger than the path to the peer allows; the sender was sent an ICMP error",
	DropCongestion:         "congestion on the way, and the inner flow does not support ECN (RFC 6040)",
	DropTruncated:          "datagram or control message larger than the receive slot",
	DropNoBuffer:           "the kernel had no memory for it",
	DropSendError:          "the kernel refused to send: peer unreachable or filtered",
	DropDeviceError:        "the TUN device refused it",
}

// DropNamed returns the reason with the given name, or NumDrops if there is none.
func DropNamed(name string) (d Drop, ok bool) {
	for d = range NumDrops {
		if d.String() == name {
			return d, true
		}
	}
	return NumDrops, false
}

// Meaning explains the reason in a few words.
func (d Drop) Meaning() string {
	if d < NumDrops {
		return dropMeanings[d]
	}
	return ""
}
