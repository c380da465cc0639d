// What a model computes with and does not train: tables of angles, decays of heads.
#pragma once

#include "autograd/place.h"

namespace weft {

class ModelConstant {
 public:
  virtual ~ModelConstant() = default;
  // Copies it to a place on a GPU, so that no step has to. The CPU reads what it was made with.
  virtual void move_to(const Place& place) const = 0;

 protected:
  ModelConstant() = default;
  ModelConstant(const ModelConstant&) = default;
  ModelConstant& operator=(const ModelConstant&) = default;
};

}  // namespace weft
