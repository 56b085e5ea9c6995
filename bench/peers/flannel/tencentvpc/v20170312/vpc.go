// Package v20170312 declares those parts of Tencent Cloud's package of this name that the
// source of flannel's backend tencent-vpc mentions. It has no client: see "Why a module of
// its own" in the README.
package v20170312

import "errors"

type (
	Filter struct {
		Name   *string
		Values []*string
	}
	Route struct {
		RouteId                                                 *uint64
		DestinationCidrBlock, GatewayId, GatewayType, RouteType *string
		Enabled                                                 *bool
	}
	RouteTable struct {
		RouteTableId *string
		RouteSet     []*Route
	}
	DescribeRouteTablesRequest  struct{ Filters []*Filter }
	DescribeRouteTablesResponse struct {
		Response struct{ RouteTableSet []*RouteTable }
	}
	// ChangeRoutesRequest creates or deletes routes.
	ChangeRoutesRequest struct {
		RouteTableId *string
		Routes       []*Route
	}
	Client struct{}
)

var errNoClient = errors.New("tencent-vpc: this program is built without the client of Tencent Cloud")

func NewClientWithSecretId(id, key, region string) (*Client, error) { return nil, errNoClient }

func NewDescribeRouteTablesRequest() *DescribeRouteTablesRequest {
	return new(DescribeRouteTablesRequest)
}
func NewCreateRoutesRequest() *ChangeRoutesRequest { return new(ChangeRoutesRequest) }
func NewDeleteRoutesRequest() *ChangeRoutesRequest { return new(ChangeRoutesRequest) }

func (*Client) DescribeRouteTables(*DescribeRouteTablesRequest) (*DescribeRouteTablesResponse, error) {
	return nil, errNoClient
}
func (*Client) CreateRoutes(*ChangeRoutesRequest) (struct{}, error) { return struct{}{}, errNoClient }
func (*Client) DeleteRoutes(*ChangeRoutesRequest) (struct{}, error) { return struct{}{}, errNoClient }
