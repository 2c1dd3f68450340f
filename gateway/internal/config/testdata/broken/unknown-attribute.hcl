gateway {
  data_dri = "/x"
}
driver "native" {}
