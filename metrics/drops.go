package metrics

// dropMeanings tell an operator what a reason says about the network, in one
// line each.
var dropMeanings = [NumDrops]string{
	DropMalformed:          "no well-formed IP packet, or cut short on its way",
	DropUnknownPeer:        "sent by a host that holds no lease",
	DropSpoofedSource:      "inner source is not in the sending peer's subnets",
	DropForeignDestination: "inner destination is not in this node's subnets; a stale lease at the sender?",
	DropNoRoute:            "no peer holds the destination",
	DropTooBig:             "larger than the path to the peer takes; the sender was told by ICMP",
	DropCongestion:         "congestion on the way, and the inner flow does not speak ECN (RFC 6040)",
	DropTruncated:          "datagram or control message larger than the receive slot",
	DropNoBuffer:           "the kernel had no memory for it",
	DropSendError:          "the kernel refused to send: peer unreachable or filtered",
	DropDeviceError:        "the TUN device refused it",
}

// Meaning says in a few words what the reason tells about the network.
func (d Drop) Meaning() string {
	if d < NumDrops {
		return dropMeanings[d]
	}
	return ""
}
