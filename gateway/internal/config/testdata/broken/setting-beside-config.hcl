driver "native" {
  stop_timeout = "3s"
}
driver "acme" {
  base      = "native"
  chain_tme = "3s"
}
